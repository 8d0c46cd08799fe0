"""Twenty kills and more of BC, IBC, IBRL and RFT: each run is resumed to the same end."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from common_utils.atomic import TEMP_MARK
from common_utils.run_config import parse_args
from common_utils.run_state import latest_state, load_state, save_state
from tests.fuzz import kills
from tests.fuzz.same_run import differences
from tests.runs import REPO, env

CASES = 12


def test_runs_that_are_killed_end_as_others(tmp_path: Path) -> None:
    """In a process of its own: what is forked must have no threads."""
    out = tmp_path / "kills.json"
    options = ["--kind", "kills", "--cases", str(CASES), "--seed", "20", "--out", str(out)]
    command = [sys.executable, "-m", "tests.fuzz", *options]
    done = subprocess.run(command, cwd=REPO, env=env(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    tally = json.loads(out.read_text())["kinds"][0]
    assert tally["accepted"] == tally["cases"] == CASES and tally["kills"] >= 20
    assert min(tally[f"kills of {name}"] for name in kills.RUNS) >= 3


# ---------------------------------------------------------------- what is compared


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("whole") / "run"
    program, values = kills.RUNS["rft"]
    own = {**values, "preload_datapath": kills.demonstrations(), "save_dir": run}
    module = kills.PROGRAMS[program]
    module.run(parse_args(module.MainConfig, [f"--{k}={v}" for k, v in own.items()]))
    return run


def one_weight(run: Path) -> None:
    weights = torch.load(run / "model0.pt", weights_only=True)
    next(iter(weights.values())).view(-1)[0] += 1e-6
    torch.save(weights, run / "model0.pt")


def no_record(run: Path) -> None:
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "metrics.jsonl").write_text("".join(lines[:-1]))


def leftover(run: Path) -> None:
    (run / f"{TEMP_MARK}0123456789ab-model0.pt").write_bytes(b"")


def lock(run: Path) -> None:
    (run / ".lock").write_text("process 1")


def second_state(run: Path) -> None:
    shutil.copytree(run / "state" / "step_000000010", run / "state" / "step_000000005")


def events_twice(run: Path) -> None:
    (file,) = (run / "tb").iterdir()
    shutil.copy(file, run / "tb" / f"{file.name}1")


def other_seed(run: Path) -> None:
    text = (run / "cfg.yaml").read_text()
    (run / "cfg.yaml").write_text(text.replace("seed: 1", "seed: 2"))


def other_generator(run: Path) -> None:
    change_state(run, lambda tree: tree["global_rng"]["numpy"].update(pos=1))


def other_moment(run: Path) -> None:
    def change(tree: dict[str, Any]) -> None:
        optimiser = tree["agent"]["optimizers"]["critic"]
        next(iter(optimiser["state"].values()))["exp_avg"].view(-1)[0] += 1e-6

    change_state(run, change)


def other_replay(run: Path) -> None:
    change_state(run, lambda tree: None, last_byte=b"x")


def change_state(
    run: Path, change: Callable[[dict[str, Any]], object], last_byte: bytes = b""
) -> None:
    """The newest state written anew, whole, and with other contents."""
    path = latest_state(run / "state")
    assert path is not None
    state = load_state(path)
    change(state.tree)
    parts = {"replay": Part(path / "parts" / "replay", last_byte)}
    new = save_state(run / "changed", state.step, state.tree, parts)
    shutil.rmtree(path)
    new.rename(path)
    (run / "changed").rmdir()


@dataclass
class Part:
    """A state's part, of which one file ends in another byte."""

    folder: Path
    last_byte: bytes

    def save(self, path: Path) -> None:
        shutil.copytree(self.folder, path, dirs_exist_ok=True)
        file = path / "replay_00.npy"
        if self.last_byte:
            file.write_bytes(file.read_bytes()[:-1] + self.last_byte)


DAMAGES: dict[Callable[[Path], None], str] = {
    one_weight: "model0.pt.", no_record: "metrics.jsonl: ", leftover: f"files: {TEMP_MARK}",
    lock: "files: .lock is too many", second_state: "files: state/step_000000005",
    events_twice: "tb: (", other_seed: "cfg.yaml.seed: 2, expected 1",
    other_generator: "state.global_rng.numpy.pos",
    other_moment: "state.agent.optimizers.critic.state",
    other_replay: "state/parts/replay/replay_00.npy: other bytes",
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_run_that_is_not_the_same_is_noticed(
    tmp_path: Path, whole: Path, damage: Callable[[Path], None]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    assert differences(run, whole) == []
    damage(run)
    found = differences(run, whole)
    assert found and found[0].startswith(DAMAGES[damage]), found
