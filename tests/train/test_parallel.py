"""RL with several environments: the same bits whatever happens to their processes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import tarfile
from pathlib import Path
from typing import Any

import pytest

import train_rl
from common_utils import run_config
from tests.runs import TIMING, assert_same_run, forked, metrics

FIXTURE = Path(__file__).parent / "fixtures" / "one_lane.tar.xz"
STEPS, LOG = 44, 11  # log points lie inside rounds of four
WARM_UP = 6


def config(save_dir: Path, **more: Any) -> train_rl.MainConfig:
    options = {
        # within 2 of a goal is everywhere: each episode succeeds, at its end
        "suite": "particle", "task_name": "PARTICLE_2d", "goal_tolerance": 2, "use_state": 1,
        "episode_length": 7, "num_train_step": STEPS, "log_per_step": LOG,
        "num_warm_up_episode": WARM_UP, "num_eval_episode": 1, "batch_size": 4,
        "nstep": 3, "replay_buffer_size": 8, "save_per_success": 1, "save_dir": save_dir,
        "q_agent.state_actor.hidden_dim": 4, "q_agent.state_critic.hidden_dim": 4,
        "q_agent.device": "cpu", "q_agent.act_method": "rl", **more,
    }  # fmt: skip
    return run_config.parse_args(train_rl.MainConfig, [f"--{k}={v}" for k, v in options.items()])


ONE = {"num_train_step": 30, "log_per_step": 10, "num_warm_up_episode": 2}


@pytest.fixture(scope="module")
def before(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the program before it had lanes, stopped at step 20; ``whole.jsonl`` has the records
    of the same run to step 30. The options are those of ``config`` with ``ONE``."""
    folder = tmp_path_factory.mktemp("before") / "run"
    with tarfile.open(FIXTURE) as archive:
        archive.extractall(folder, filter="data")
    return folder


def assert_records(found: list[dict[str, float]], whole: Path) -> None:
    """Equal but for the last bits, which differ from CPU to CPU."""
    records = [json.loads(line) for line in whole.read_text().splitlines()]
    expected = [{k: v for k, v in r.items() if not k.startswith(TIMING)} for r in records]
    assert [r.keys() for r in found] == [r.keys() for r in expected]
    for record, want in zip(found, expected, strict=True):
        assert record == pytest.approx(want, rel=1e-4, abs=1e-6)


def test_one_environment_plays_as_before(before: Path, tmp_path: Path) -> None:
    train_rl.run(config(tmp_path / "run", **ONE))
    assert_records(metrics(tmp_path / "run"), before / "whole.jsonl")


def test_states_of_earlier_versions_are_resumed(before: Path, tmp_path: Path) -> None:
    shutil.copytree(before, tmp_path / "run")
    work = train_rl.run(config(tmp_path / "run", **ONE, resume=1))
    assert_records(metrics(tmp_path / "run"), before / "whole.jsonl")
    assert work.replay.num_episode == 2 + 30 // 7


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run with four environments."""
    save_dir = tmp_path_factory.mktemp("four") / "run"
    train_rl.run(config(save_dir, num_env=4))
    return save_dir


def test_four_environments_fill_the_replay_in_order(four: Path) -> None:
    records = metrics(four)
    assert [r["step"] for r in records] == [11, 22, 33, 44]
    # 44 steps of four environments: each has ended one episode of 7, and plays the second
    assert [r["other/episode"] for r in records] == [WARM_UP + n for n in (0, 0, 4, 4)]
    assert [r["other/train_step"] for r in records] == [5, 11, 16, 22]
    assert "4 environments, each in a process of its own" in (four / "train.log").read_text()


def _killed(save_dir: Path, step: int) -> None:
    """Runs and is killed at ``step``."""

    class Killed(train_rl.Workspace):
        def _train_one_step(self) -> None:
            if self.global_step == step:
                os.kill(os.getpid(), signal.SIGKILL)
            super()._train_one_step()

    train_rl.Workspace = Killed  # type: ignore[misc]
    train_rl.run(config(save_dir, num_env=4))


def test_a_killed_run_is_resumed_bit_for_bit(four: Path, tmp_path: Path) -> None:
    """The last state lies in the middle of a round, with actions that are not answered."""
    with pytest.raises(AssertionError, match="ended without an answer"):
        forked(_killed, tmp_path / "run", 29)
    assert len(metrics(tmp_path / "run")) == 2
    train_rl.run(config(tmp_path / "run", num_env=4, resume=1))
    assert_same_run(four, tmp_path / "run")


def test_lost_workers_change_nothing(
    four: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One is killed in the warm-up, one in training, and one hangs there."""
    step, done = train_rl.Workspace.step_env, []

    def losing(work: train_rl.Workspace, choose: Any) -> bool:
        done.append(1)
        lost = {9: (2, signal.SIGKILL), 60: (1, signal.SIGKILL), 67: (3, signal.SIGSTOP)}
        if len(done) in lost:
            lane, signum = lost[len(done)]
            os.kill(work.envs._lanes[lane].worker.process.pid, signum)
        return step(work, choose)

    monkeypatch.setattr(train_rl.Workspace, "step_env", losing)
    train_rl.run(config(tmp_path / "run", num_env=4, env_timeout=1))
    assert_same_run(four, tmp_path / "run")
    log = (tmp_path / "run" / "train.log").read_text()
    assert log.count("a new worker was brought to") == 3
    assert log.count("killed by signal 9") == 2 and log.count("did not answer for 2 s") == 1


def test_a_vector_environment_trains_as_processes_do(tmp_path: Path) -> None:
    options = {
        "suite": "gymnasium", "task_name": "Pendulum-v1", "gym.success_key": "truncated",
        "goal_tolerance": 0, "num_env": 3, "num_train_step": 22,
    }  # fmt: skip
    train_rl.run(config(tmp_path / "processes", **options))
    train_rl.run(config(tmp_path / "vector", **options, **{"gym.vector": "sync"}))
    assert_same_run(tmp_path / "processes", tmp_path / "vector")


def test_a_dry_run_of_two_environments(tmp_path: Path, capsys: Any) -> None:
    train_rl.run(config(tmp_path / "run", num_env=2, dry_run=1))
    out = capsys.readouterr().out
    assert "2 environments, each in a process of its own" in out and "in all about" in out
    assert not (tmp_path / "run").exists()
