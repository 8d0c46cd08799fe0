"""Runs that are stopped while they evaluate: nothing is lost, and the end is the same."""

from __future__ import annotations

import os
import shlex
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from common_utils.records import read_metrics
from evaluate.rollout import EvalError
from tests import forkserver
from tests.train.test_non_finite import (
    HERE,
    REPO,
    bc,
    bc_options,
    rl,
    rl_options,
    state_step,
    write,
)

TIMES = ("wall", "other/speed", "other/elapsed_time")
GAMES = ["--num_eval_episode=60"]


@pytest.fixture(scope="module")
def demos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("hold"), 1.0)


@pytest.fixture(scope="module")
def whole_rl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("rl") / "run"
    rl(run, *GAMES)
    return run


@pytest.fixture(scope="module")
def whole_bc(tmp_path_factory: pytest.TempPathFactory, demos: Path) -> Path:
    run = tmp_path_factory.mktemp("bc") / "run"
    bc(run, demos, *GAMES)
    return run


@pytest.fixture(autouse=True)
def hangups_count() -> Iterator[None]:
    """Also where the tests themselves run under nohup, which their programs would inherit."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


def records(run: Path) -> list[dict[str, float]]:
    rows = read_metrics(run / "metrics.jsonl")
    return [{k: v for k, v in r.items() if k not in TIMES and "time/" not in k} for r in rows]


def assert_same(run: Path, whole: Path) -> None:
    assert records(run) == records(whole)
    for name in ("model0.pt", "latest.pt"):
        mine, theirs = (torch.load(x / name, weights_only=True) for x in (run, whole))
        assert all(torch.equal(mine[k], theirs[k]) for k in theirs), name


def environment() -> dict[str, str]:
    path = os.pathsep.join([str(REPO), str(HERE)])
    return os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}


def typed(line: str, name: str) -> str:
    """Run the command that a line of output names; returns its output."""
    assert line.startswith(f"  {name}: "), line
    words = shlex.split(line.removeprefix(f"  {name}: "))
    assert Path(words[0]).name.startswith("python"), line
    done = forkserver.run(*words[1:], variables=environment(), timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def interrupt(command: list[str], run: Path, step: int, sent: signal.Signals) -> list[str]:
    """Send a signal in the (very slow) evaluation of ``step``; the last two lines printed."""
    env = environment() | {"FAULT": "slow:eval:1"}
    job = forkserver.Program(command, env)
    deadline = time.monotonic() + 120
    while not (run / "state" / f"step_{step:09d}").exists():
        assert time.monotonic() < deadline and job.poll() is None, job.done(1)
        time.sleep(0.02)
    time.sleep(0.5)
    job.send_signal(sent)
    started = time.monotonic()
    error = job.done(60).stderr
    assert time.monotonic() - started < 20, "sixty games of ten steps take 60 s"
    assert job.returncode == 1
    assert [p.name for p in (run / "state").glob(f"step_{step:09d}*")] == [f"step_{step:09d}"]
    return error.splitlines()[-2:]


@pytest.mark.parametrize(
    ("sent", "more"),
    [(signal.SIGTERM, []), (signal.SIGHUP, ["--mp_eval=1", "--num_eval_worker=2"])],
)
def test_rl_leaves_an_evaluation_and_plays_it_again(tmp_path, whole_rl, sent, more):
    run = tmp_path / "run"
    command = ["train_rl.py", *rl_options(run, *GAMES, *more)]
    said, to_continue = interrupt(command, run, 40, sent)
    assert said == (
        f"{sent.name} at step 40, in an evaluation: state saved; the same command with --resume 1 "
        "continues"
    )
    assert not (run / "model0.pt").exists()
    finished = typed(to_continue, "continue").splitlines()
    assert_same(run, whole_rl)
    evaluate, longer = finished[-2:]
    games = evaluate.replace("--num_game 50", "--num_game 2 --mp 0")
    assert "success" in typed(f"  {games}", "evaluate")  # the module of the task is trusted
    assert longer.startswith("train longer: ") and "--num_train_step 240" in longer
    before = records(run)
    rl(run, *GAMES, "--resume=1")  # a finished run adds nothing
    assert records(run) == before


def test_bc_leaves_an_evaluation_and_plays_it_again(tmp_path, demos, whole_bc):
    run = tmp_path / "run"
    command = ["train_bc.py", *bc_options(run, demos, *GAMES)]
    said, to_continue = interrupt(command, run, 20, signal.SIGUSR1)
    assert said.startswith("SIGUSR1 at step 20, in an evaluation: state saved")
    typed(to_continue, "continue")
    assert_same(run, whole_bc)


def test_a_dead_evaluation_worker_costs_no_training(tmp_path, monkeypatch, whole_rl):
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setenv("FAULT", "die:65:1")
        with pytest.raises(EvalError, match="was killed by signal 9 while playing seed 65"):
            rl(run, *GAMES, "--mp_eval=1", "--num_eval_worker=1")
    assert state_step(run) == 40
    assert records(run) == []
    rl(run, *GAMES, "--resume=1")
    assert_same(run, whole_rl)
