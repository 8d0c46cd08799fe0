"""Whole runs on a file system that refuses: read-only folders, disks that fill in the middle."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

import train_rl
from common_utils import run_config
from common_utils.resources import Need, ResourceError
from tests import runs
from tests.fuzz import folders
from tests.fuzz.runs import RUNS
from workspace.disk_needs import disk_needs
from workspace.prepare_rl import KEPT_WEIGHTS


def options(save_dir: Path, **more: Any) -> list[str]:
    own = {"q_agent.act_method": "rl", "num_eval_episode": 0, "save_dir": save_dir}
    return [f"--{k}={v}" for k, v in (RUNS["train_rl"] | own | more).items()]


def rl(save_dir: Path, **more: Any) -> train_rl.Workspace:
    return train_rl.run(run_config.parse_args(train_rl.MainConfig, options(save_dir, **more)))


def test_an_rl_run_writes_no_more_than_it_said(tmp_path: Path) -> None:
    wide = {f"q_agent.state_{net}.hidden_dim": 128 for net in ("actor", "critic")}
    run = tmp_path / "run"
    work = rl(run, **wide)
    needs = disk_needs(work.agent, KEPT_WEIGHTS, Need(0))
    weights = sum(path.stat().st_size for path in run.glob("*.pt"))
    states = sum(path.stat().st_size for path in run.glob("state/*/tree.pt"))
    assert 0.5 * needs["weights"].bytes < weights <= needs["weights"].bytes
    assert 0.7 * needs["networks in states"].bytes < states
    assert states <= 1.1 * needs["networks in states"].bytes
    assert f"networks in states {needs['networks in states'].bytes / 2**20:.1f} MiB, weights" in (
        (run / "train.log").read_text()
    )


def test_a_disk_that_fills_in_the_middle_costs_the_steps_since_the_last_state(
    tmp_path: Path,
) -> None:
    run, whole = tmp_path / "run", tmp_path / "whole"
    rl(whole)
    rl(run, num_train_step=6)
    said = r"^save_dir '.*run': the file size limit is reached; state/step_000000006\S* is kept"
    with runs.file_size_limit(16_000), pytest.raises(ResourceError, match=said):
        rl(run, resume=1)
    assert not [p for p in run.rglob(".tmp*") if p.parent.name == "state"]
    rl(run, resume=1)
    runs.assert_same_run(run, whole)


@pytest.mark.parametrize("resume", [0, 1])
def test_a_folder_that_may_not_be_written_to_is_refused_in_a_line(
    resume: int, tmp_path: Path
) -> None:
    place = tmp_path / "place"
    run = place / "run"
    place.mkdir()
    if resume:
        shutil.copytree(folders.whole("rl"), run)
        run.chmod(0o555)
    place.chmod(0o555)
    before = sorted(place.rglob("*"))
    args = ["train_rl.py", *options(run, resume=resume)]
    done = runs.program(*args, without_override=True)
    assert done.returncode == 2 and sorted(place.rglob("*")) == before
    (line,) = [x for x in done.stderr.splitlines() if x.startswith("error: ")]
    assert line.startswith(f"error: save_dir '{run}': [Errno 13] Permission denied: ")
    assert "Traceback" not in done.stderr
