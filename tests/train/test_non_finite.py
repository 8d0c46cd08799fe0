"""Runs that diverge, or whose environment does: stopped, named, and nothing good is lost."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import train_bc
import train_rl
from bc.explicit.bc_policy import StateBcPolicy
from common_utils import run_config
from common_utils.demo_file import Recording, write_demos
from common_utils.errors import UserError
from common_utils.finite import NonFiniteError, non_finite_entry
from common_utils.records import read_metrics
from common_utils.run_state import StateError, latest_state
from env.config import EnvConfig
from env.factory import env_args, make_env
from env.original_api import OriginalApi
from tests import forkserver
from tests.infra.test_finite import spoil

HERE = Path(__file__).parent
REPO = HERE.parents[1]
NAME = "critic_target.net.0.weights"

sys.path.insert(0, str(HERE))  # the tasks

TASK = EnvConfig(
    suite="gymnasium",
    task="faulty/Hold-v0",
    use_state=1,
    episode_length=10,
    gym_module="faulty_tasks",
    gym_success_key="near",
)


def rl_options(save_dir: Path, *more: str) -> list[str]:
    options = {
        "suite": "gymnasium",
        "task_name": "faulty/Hold-v0",
        "gym.module": "faulty_tasks",
        "gym.success_key": "near",
        "use_state": 1,
        "episode_length": 10,
        "num_train_step": 120,
        "log_per_step": 40,
        "num_eval_episode": 2,
        "num_warm_up_episode": 2,
        "stddev_max": 0.5,
        "batch_size": 16,
        "q_agent.act_method": "rl",
        "q_agent.state_critic.hidden_dim": 16,
        "q_agent.state_actor.hidden_dim": 16,
        "save_dir": save_dir,
    }
    return [*(f"--{k}={v}" for k, v in options.items()), *more]


def rl(save_dir: Path, *more: str) -> train_rl.Workspace:
    return train_rl.run(run_config.parse_args(train_rl.MainConfig, rl_options(save_dir, *more)))


def check_finite_files(run: Path) -> None:
    for path in run.rglob("*.pt"):
        assert not non_finite_entry(torch.load(path, weights_only=True)), path


def state_step(run: Path) -> int:
    state = latest_state(run / "state")
    assert state is not None
    return int(state.name[5:14])


def test_an_agent_that_diverges_keeps_its_last_good_checkpoint(tmp_path, monkeypatch):
    run = tmp_path / "run"
    monkeypatch.setenv("FAULT", "huge:train:75")  # 20 of them in the warm-up
    with pytest.raises(NonFiniteError, match=r"^step [4-8]\d: train/critic_loss is"):
        rl(run)
    assert [r["step"] for r in read_metrics(run / "metrics.jsonl")] == [40]
    assert state_step(run) == 40
    assert {p.name for p in run.glob("*.pt")} == {"model0.pt", "latest.pt"}
    train_rl.load_model(str(run / "latest.pt"), "cpu")[1].close()
    assert "error: step" in (run / "train.log").read_text()
    # put right, it goes on from there
    monkeypatch.delenv("FAULT")
    assert rl(run, "--resume=1").global_step == 120
    assert [r["step"] for r in read_metrics(run / "metrics.jsonl")] == [40, 80, 120]


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("reward:train:75", "episode of seed [0-9]+, step [0-9]: the reward is nan"),
        (
            "obs:train:75",
            r"of seed [0-9]+, step [0-9]: observation 'state' is inf at \[1\]",
        ),
        ("reward:5:2", "episode of seed 5, step 2: the reward is nan"),
    ],
)
def test_what_the_environment_returns_ends_a_program_in_one_line(tmp_path, fault, message):
    run = tmp_path / "run"
    path = os.pathsep.join([str(REPO), str(HERE)])
    env = os.environ | {"FAULT": fault, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    workers = ["--mp_eval=1", "--num_eval_worker=1"] if "train" not in fault else []
    done = forkserver.run("train_rl.py", *rl_options(run, *workers), variables=env, timeout=300)
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ") and "task 'faulty/Hold-v0', " in line
    assert re.search(message, line), line
    assert state_step(run) == (80 if "train" not in fault else 40)
    check_finite_files(run)
    assert [r["step"] for r in read_metrics(run / "metrics.jsonl")] == [40]


def write(folder: Path, reward: float) -> Path:
    """Three demonstrations of the task, whose last steps earn ``reward``."""
    rng, recordings = np.random.default_rng(0), []
    for _ in range(3):
        recordings.append(Recording())
        for step in range(6):
            state = rng.uniform(-1, 1, 2).astype(np.float32)
            recordings[-1].append({"state": state}, state, -state / 2, reward * (step == 5))
    return write_demos(folder, recordings, [], env_args(TASK))


@pytest.fixture(scope="module")
def demos(tmp_path_factory) -> Path:
    return write(tmp_path_factory.mktemp("hold"), 1.0)


def test_rewards_of_demonstrations_that_overflow_are_named(tmp_path):
    demos = write(tmp_path, 1e35)
    more = ["--preload_num_data=3", f"--preload_datapath={demos}", "--env_reward_scale=1e6"]
    message = "dataset.hdf5', demo_0: rewards times env_reward_scale 1e[+]06 are NaN or infinite"
    with pytest.raises(NonFiniteError, match=message):
        rl(tmp_path / "run", "--gym.success_key=", *more)


def test_a_state_with_nan_weights_is_refused_by_name(tmp_path):
    run = tmp_path / "run"
    rl(run, "--num_train_step=40")
    for state in (run / "state").iterdir():
        spoil(state, "agent", "model", NAME)
    with (
        pytest.warns(UserWarning, match="trying the state before it"),
        pytest.raises(StateError, match=rf"agent\.model\.{re.escape(NAME)} holds NaN"),
    ):
        rl(run, "--num_train_step=40", "--resume=1")


# ------------------------------------------------------------------------------ BC


def bc_options(save_dir: Path, demos: Path, *more: str) -> list[str]:
    args = ["--dataset.path", str(demos), "--save_dir", str(save_dir), "--device", "cpu"]
    args += ["--num_epoch", "2", "--epoch_len", "20", "--batch_size", "8", "--save_per", "1"]
    args += ["--num_eval_episode", "0", "--dataset.use_state", "1", "--ema", "0.1"]
    args += ["--env.gym_module", "faulty_tasks", "--dataset.eval_episode_len", "10"]
    return [*args, "--state_policy.hidden_dim", "16", *more]


def bc(save_dir: Path, demos: Path, *more: str) -> train_bc.Workspace:
    args = bc_options(save_dir, demos, *more)
    return train_bc.run(run_config.parse_args(train_bc.MainConfig, args))


def diverge_at(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loss overflows from this gradient step on."""
    loss, calls = StateBcPolicy.loss, iter(range(1, 10**6))

    def diverging(self, batch):
        return loss(self, batch) * (1e38 * 1e38 if next(calls) >= step else 1)

    monkeypatch.setattr(StateBcPolicy, "loss", diverging)


@pytest.mark.parametrize(("check_every", "noticed"), [(500, 40), (5, 30)])
def test_bc_that_diverges_keeps_its_last_good_checkpoint(
    tmp_path, demos, monkeypatch, check_every, noticed
):
    run, steps = tmp_path / "run", []
    with monkeypatch.context() as patch:
        diverge_at(26, patch)
        patch.setattr(train_bc, "CHECK_EVERY", check_every)
        step = train_bc.Workspace._train_step
        patch.setattr(
            train_bc.Workspace, "_train_step", lambda w: (step(w), steps.append(w.step))[0]
        )
        with pytest.raises(NonFiniteError, match=r"^step 26: train/(loss|grad_norm) is (inf|nan)"):
            bc(run, demos)
    assert steps[-1] == noticed
    assert state_step(run) == 20
    names = {"model0.pt", "model1.pt", "latest.pt", "epoch1.pt"}
    assert {p.name for p in run.glob("*.pt")} == names
    check_finite_files(run)
    assert bc(run, demos, "--resume", "1").step == 40
    whole = bc(tmp_path / "whole", demos)
    assert all(
        torch.equal(v, whole.policy.state_dict()[k])
        for k, v in torch.load(run / "latest.pt", weights_only=True).items()
    )


def test_weights_that_diverge_in_the_last_step_are_not_kept(tmp_path, demos, monkeypatch):
    run, step = tmp_path / "run", train_bc.Workspace._train_step

    def overflow(work):
        step(work)
        if work.step == 40:
            next(work.ema.parameters()).data[0] = torch.inf

    with monkeypatch.context() as patch:
        patch.setattr(train_bc.Workspace, "_train_step", overflow)
        with pytest.raises(NonFiniteError, match=r"holds NaN or infinity"):
            bc(run, demos)
    check_finite_files(run)
    assert state_step(run) == 20


@pytest.mark.parametrize("mp_eval", ["0", "1"])
def test_a_nan_reward_in_an_evaluation_of_bc(tmp_path, demos, monkeypatch, mp_eval):
    run, play = tmp_path / "run", ["--num_eval_episode", "1", "--num_final_episode", "0"]
    play += ["--mp_eval", mp_eval, "--num_eval_worker", "1"]
    with monkeypatch.context() as patch:
        patch.setenv("FAULT", "reward:2:1")
        with pytest.raises(UserError, match="episode of seed 2, step 1: the reward is nan"):
            bc(run, demos, *play)
    check_finite_files(run)
    assert bc(run, demos, *play, "--resume", "1").epoch == 2


@pytest.mark.parametrize(
    "fault, said",
    [
        ("reward:5:2", "step 2: the reward is nan"),
        ("obs:5:1", "step 1: observation 'state' is inf"),
    ],
)
def test_the_original_tuples_are_finite(
    fault: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAULT", fault)
    env = OriginalApi(make_env(TASK), device="cpu", rename={}, seed=5)
    env.reset()
    with pytest.raises(NonFiniteError, match=f"episode of seed 5, {said}"):
        env.step(np.zeros((3, 2), np.float32))
    env.reset()  # of seed 6, without the fault
    with pytest.raises(NonFiniteError, match="at step 0 of the episode of seed 6"):
        env.step(np.full(2, np.nan, np.float32))
    env.close()
