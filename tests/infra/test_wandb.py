"""Weights & Biases by its real package, which has neither a login nor a network here."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from common_utils.errors import ConfigError
from common_utils.loggers.sink import RunInfo
from common_utils.loggers.wandb import ID_FILE, WandbSink
from common_utils.plain_file import read_id
from common_utils.records import read_metrics
from common_utils.run_config import RunConfig
from common_utils.run_folder import RunFolder
from tests import forkserver
from tests.fuzz import folders
from tests.fuzz.runs import RUNS
from tests.runs import REPO, forked

PROGRAM = """
import sys
from common_utils.errors import run_program
from common_utils.run_config import RunConfig
from common_utils.run_folder import RunFolder
def main():
    for step in (1, 2):
        cfg = RunConfig(use_wb=1, save_dir=sys.argv[1])
        with RunFolder(cfg.save_dir, resume=step == 2, overwrite=False) as folder:
            with folder.open_log(cfg, ()) as log:
                log.log(step, {"score": 0.5})
                folder.save(step, {"log": log.state_dict()})
sys.exit(run_program(main))
"""


TRAIN = """
import sys
from common_utils.errors import run_program
import train_rl
if sys.argv.pop(1) == "no package":
    sys.modules["wandb"] = None
sys.exit(run_program(train_rl.main))
"""


def program(
    folder: Path, *args: str, code: str = PROGRAM, **more: str
) -> subprocess.CompletedProcess[str]:
    variables = {k: v for k, v in os.environ.items() if not k.startswith("WANDB_")}
    variables |= {"HOME": str(folder.parent), "PYTHONPATH": str(REPO), **more}
    return forkserver.run("-c", code, *(args or [str(folder)]), variables=variables)


def test_offline_needs_no_account(tmp_path: Path) -> None:
    run = tmp_path / "run"
    done = program(run, WANDB_MODE="offline", WANDB_SILENT="true")
    assert done.returncode == 0, done.stderr
    name = (run / ID_FILE).read_text().strip()
    assert list(run.glob(f"wandb/offline-run-*/*{name}.wandb"))
    assert [r["step"] for r in read_metrics(run / "metrics.jsonl")] == [1, 2]


@pytest.mark.parametrize(
    "variables",
    [{}, {"WANDB_API_KEY": "0" * 40, "WANDB_BASE_URL": "http://127.0.0.1:9"}],
    ids=["no login", "no network"],
)
def test_without_login_or_network_a_line_says_what_to_do(
    tmp_path: Path, variables: dict[str, str]
) -> None:
    done = program(tmp_path / "run", WANDB_INIT_TIMEOUT="0.5", **variables)
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    (line,) = [x for x in done.stderr.splitlines() if x.startswith("error: ")]
    assert line.startswith("error: use_wb: 1, but Weights & Biases cannot be used (")
    assert "wandb login" in line and "WANDB_MODE=offline" in line and "--use_wb 0" in line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("lacking", "overwrite"), [("no package", False), ("no login", False), ("no login", True)]
)
def test_a_training_program_says_so_before_it_writes(
    tmp_path: Path, lacking: str, overwrite: bool
) -> None:
    """Also where a run was to be replaced: it stays as it was."""
    run, out = tmp_path / "run", tmp_path / "new" / "run"
    shutil.copytree(folders.whole("rl"), run)
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    options = [f"--{k}={v}" for k, v in RUNS["train_rl"].items()]
    options += ["--q_agent.act_method=rl", "--use_wb=1"]
    options += [f"--save_dir={run}", "--overwrite=1"] if overwrite else [f"--save_dir={out}"]
    done = program(run, lacking, *options, code=TRAIN, WANDB_INIT_TIMEOUT="0.5")
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    (line,) = [x for x in done.stderr.splitlines() if x.startswith("error: ")]
    assert line.startswith("error: use_wb: 1, but ") and "--use_wb 0" in line
    after = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    assert after == before and not out.parent.exists()


def test_without_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ConfigError, match="wandb cannot be imported.*pip install wandb"):
        WandbSink(RunInfo(tmp_path))


def test_a_damaged_id_is_no_id(tmp_path: Path) -> None:
    path = tmp_path / ID_FILE
    assert read_id(path) == ""
    for content, found in ((b"ab12-x\n", "ab12-x"), (b"a/b", ""), (b"\xff", ""), (b"x" * 2000, "")):
        path.write_bytes(content)
        assert read_id(path) == found
    path.unlink()
    path.mkdir()
    assert read_id(path) == ""


def children() -> Iterator[tuple[int, str]]:
    """Processes that this one started, and their names."""
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            name, rest = path.read_text().split("(", 1)[1].rsplit(")", 1)
            if int(rest.split()[1]) == os.getpid():
                yield int(path.parent.name), name


def lose_the_service(run: Path) -> None:
    """A training in which the process that writes for Weights & Biases is killed."""
    cfg = RunConfig(use_wb=1, save_dir=str(run))
    with RunFolder(cfg.save_dir, resume=False, overwrite=False) as folder:
        with folder.open_log(cfg, ()) as log:
            log.log(1, {"score": 0.5})
            (service,) = [pid for pid, name in children() if "wandb" in name]
            os.kill(service, signal.SIGKILL)
            for step in range(2, 30):
                log.log(step, {"score": 0.5})
                folder.save(step, {"log": log.state_dict()})


def test_a_service_that_dies_does_not_end_a_run(tmp_path: Path) -> None:
    run = tmp_path / "run"
    forked(lose_the_service, run, WANDB_MODE="offline", WANDB_SILENT="true", HOME=str(tmp_path))
    assert [r["step"] for r in read_metrics(run / "metrics.jsonl")] == list(range(1, 30))
    assert (run / "train.log").read_text().count("warning: Weights & Biases: ") == 1
