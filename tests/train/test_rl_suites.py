"""RL on the suites of Implicit BC: runs from states and pixels, their scores, and resuming.

A run of half the steps, ended in the middle of an episode and continued, must be the
uninterrupted one bit for bit: episodes are brought back from their seed and actions.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

import train_bc
import train_rl
from common_utils import run_config
from common_utils.demo_file import Recording, write_demos
from common_utils.run_config import ConfigError
from env.config import EnvConfig
from env.core import EnvError
from env.factory import env_args, make_env
from evaluate.multi_process_eval import run_eval_mp
from evaluate.rollout import run_eval
from tests.runs import assert_same_run, metrics
from tests.train import small
from tools import collect_oracle
from workspace.build_agent import load_model

HALF, WHOLE = 24, 48


def config(save_dir: Path, steps: int, **more: Any) -> train_rl.MainConfig:
    return small.config(save_dir, steps, **{"episode_length": 17, "log_per_step": HALF, **more})


SUITES = {
    "particle": {"task_name": "PARTICLE_2d"},
    "block_pushing": {"task_name": "PUSH"},
    "block_pushing_goals": {"task_name": "PUSH_MULTIMODAL", "goal_tolerance": 0.05},
    "door": {"suite": "d4rl", "task_name": "door-human-v0"},
    "kitchen": {"suite": "d4rl", "task_name": "kitchen-complete-v0"},
}


@pytest.mark.parametrize("name", SUITES)
def test_a_resumed_run_is_the_uninterrupted_one(name: str, tmp_path: Path) -> None:
    options = {"suite": name.removesuffix("_goals"), **SUITES[name]}
    train_rl.run(config(tmp_path / "whole", WHOLE, **options))
    train_rl.run(config(tmp_path / "parts", HALF, **options))
    work = train_rl.run(config(tmp_path / "parts", WHOLE, resume=1, **options))
    assert_same_run(tmp_path / "whole", tmp_path / "parts")
    last = metrics(tmp_path / "whole")[-1]
    assert (last["step"], last["eval/seed"], last["other/train_step"]) == (WHOLE, 2, WHOLE / 2)
    assert last["train/critic_loss"] > 0
    # 48 steps are two whole episodes of 17 and a part, after one of warm-up
    assert (work.play.lanes[0].episode, work.spec.horizon) == (3, 17)


def test_ibrl_on_the_particle(tmp_path: Path) -> None:
    """From an oracle's demonstrations to BC, to IBRL, whose successes become demonstrations."""
    demos = tmp_path / "demos"
    collect_oracle.collect(collect_oracle.MainConfig("PARTICLE_1d", 4, 0, out=str(demos)))
    file = str(demos / "dataset.hdf5")
    args = ["--policy_type=mse", "--dataset.use_state=1", f"--dataset.path={file}", "--device=cpu"]
    args += ["--num_epoch=1", "--epoch_len=20", "--num_eval_episode=0"]
    bc = tmp_path / "bc"
    train_bc.run(run_config.parse_args(train_bc.MainConfig, [*args, f"--save_dir={bc}"]))
    options = {
        "suite": "particle",
        "task_name": "",
        "episode_length": 60,
        # within 2 of a goal is everywhere: each episode succeeds, at its end
        "goal_tolerance": 2.0,
        "bc_policy": bc / "model0.pt",
        "q_agent.act_method": "ibrl",
        "preload_num_data": 3,
        "preload_datapath": file,
        "save_per_success": 1,
    }
    work = train_rl.run(config(tmp_path / "rl", 100, **options))
    last = metrics(tmp_path / "rl")[-1]
    assert last["score/score"] == 1.0 and last["score/num_success"] == 3 + 1 + 2
    assert work.spec.horizon == 50, "the particle's own time limit is the shorter one"
    with h5py.File(sorted((tmp_path / "rl").glob("data*.h5"))[-1]) as saved:
        assert len(next(iter(saved["data"].values()))["actions"]) == 50


@pytest.fixture(scope="module")
def chunks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Options of a run with a flow policy that proposes chunks of 4 actions."""
    root = tmp_path_factory.mktemp("chunks")
    collect_oracle.collect(collect_oracle.MainConfig("PARTICLE_1d", 3, 0, out=str(root / "demos")))
    file = str(root / "demos" / "dataset.hdf5")
    args = ["--policy_type=flow", "--dataset.use_state=1", f"--dataset.path={file}"]
    args += ["--flow.chunk.length=4", "--flow.net.hidden_dim=16", "--flow.steps=2", "--device=cpu"]
    args += ["--num_epoch=1", "--epoch_len=20", "--num_eval_episode=0"]
    train_bc.run(run_config.parse_args(train_bc.MainConfig, [*args, f"--save_dir={root / 'bc'}"]))
    return {
        "suite": "particle", "task_name": "", "nstep": 1, "num_env": 2, "num_eval_episode": 2,
        "bc_policy": root / "bc" / "model0.pt", "preload_num_data": 3, "preload_datapath": file,
        "q_agent.num_bc_samples": 2,
    }  # fmt: skip


CHUNKING = {
    "distilled": {
        "q_agent.act_method": "rl", "q_agent.horizon": 4, "q_agent.distill": 10,
        "q_agent.bc_lr": 1e-3, "stddev_max": 0,
    },
    "residual": {"q_agent.act_method": "ibrl", "q_agent.residual": 0.2, "nstep": 3},
    "ibrl": {"q_agent.act_method": "ibrl", "q_agent.horizon": 3},
    "q_chunking": {
        "q_agent.act_method": "bc", "q_agent.horizon": 4, "q_agent.bc_lr": 1e-3,
        "q_agent.pessimism": "mean",
    },
}  # fmt: skip


@pytest.mark.parametrize("method", CHUNKING)
def test_agents_over_chunks(method: str, chunks: dict[str, Any], tmp_path: Path) -> None:
    """A run that is resumed inside chunks is the uninterrupted one, and is evaluated anywhere."""
    options = {**chunks, **CHUNKING[method]}
    train_rl.run(config(tmp_path / "whole", WHOLE, **options))
    train_rl.run(config(tmp_path / "parts", HALF, **options))
    train_rl.run(config(tmp_path / "parts", WHOLE, resume=1, **options))
    assert_same_run(tmp_path / "whole", tmp_path / "parts")
    last = metrics(tmp_path / "whole")[-1]
    assert last["train/critic_loss"] > 0 and last["score/start_q"] != 0
    assert ("train/bc_loss" in last) == ("q_agent.bc_lr" in options)
    agent, env, params = load_model(str(tmp_path / "whole" / "latest.pt"), "cpu")
    here = run_eval(env, agent, num_game=2, seed=5)
    env.close()
    elsewhere = run_eval_mp(params, agent, num_game=2, num_proc=2, seed=5)
    assert here.lengths.tolist() == elsewhere.lengths.tolist()
    assert here.scores.tolist() == elsewhere.scores.tolist()


def test_chunks_longer_than_the_policys_are_refused(chunks: dict[str, Any], tmp_path: Path) -> None:
    options = {**chunks, "q_agent.act_method": "ibrl", "q_agent.horizon": 5}
    with pytest.raises(ConfigError, match="q_agent.horizon: 5, expected at most 4, the actions"):
        train_rl.run(config(tmp_path / "longer", HALF, **options))
    options = {**chunks, "q_agent.act_method": "bc", "q_agent.horizon": 2, "q_agent.bc_lr": 1}
    with pytest.raises(ConfigError, match="q_agent.bc_lr: 1: FlowPolicy learns chunks of 4, exp"):
        train_rl.run(config(tmp_path / "shorter", HALF, **options))


def test_the_critics_may_learn_alone_at_first(tmp_path: Path) -> None:
    options = {"suite": "particle", "task_name": "PARTICLE_2d", "critic_only_step": HALF}
    half = train_rl.run(config(tmp_path / "run", HALF, **options))
    first, actor = half.agent.state_dict(), half.agent.optimizers()["actor"]
    assert not actor.state and half.agent.optimizers()["critic"].state
    assert metrics(tmp_path / "run")[-1]["other/train_step"] == HALF / 2
    whole = train_rl.run(config(tmp_path / "run", WHOLE, resume=1, **options)).agent.state_dict()
    assert any(not torch.equal(v, whole[k]) for k, v in first.items() if k.startswith("actor."))


def test_returns_count_on_d4rl(tmp_path: Path) -> None:
    """RLPD on door: demonstrations are taken whole, checkpoints are compared by return."""
    cfg = EnvConfig(suite="d4rl", task="door-human-v0", use_state=1, episode_length=30)
    env, rng, recordings = make_env(cfg), np.random.default_rng(0), []
    for seed in range(2):
        obs, done, recording = env.reset(seed=seed)[0], False, Recording()
        while not done:
            action, before = rng.uniform(-1, 1, 28).astype(np.float32), obs
            obs, reward, terminated, truncated, _ = env.step(action)
            recording.append(before, before["state"], action, 1.0 if seed else reward)
            done = terminated or truncated
        recordings.append(recording)
    env.close()
    file = write_demos(tmp_path / "demos", recordings, [], env_args(cfg))
    options = {
        "suite": "d4rl",
        "task_name": "door-human-v0",
        "preload_num_data": 2,
        "preload_datapath": file,
        "mix_rl_rate": 0.5,
        "num_eval_episode": 2,
    }
    work = train_rl.run(config(tmp_path / "run", HALF, **options))
    # longer than episode_length, and with a reward of 1 long before the end
    assert work.replay._core.meta()["episodes"][:2, 0].tolist() == [30, 30]
    last = metrics(tmp_path / "run")[-1]
    assert last["score/score"] == last["score/return"] < -1 and last["score/success"] == 0
    assert last["score/goal_achieved_steps"] == 0


def test_block_pushing_from_pixels(tmp_path: Path) -> None:
    options = {"suite": "block_pushing", "task_name": "PUSH", "rl_camera": "rgb", "obs_stack": 2}
    more = {"use_state": 0, "render_quality": "fast", "rl_image_size": 48}
    more |= {"q_agent.enc_type": "drq", "episode_length": 4, "log_per_step": 6}
    train_rl.run(config(tmp_path / "run", 6, **options, **more))
    assert metrics(tmp_path / "run")[-1]["train/critic_loss"] > 0


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"suite": "particle", "use_state": 0}, EnvError, "states only: set use_state 1"),
        ({"suite": "block_pushing", "use_state": 0}, EnvError, r"block_pushing has \['rgb'\]"),
        (
            {"suite": "block_pushing", "use_state": 0, "rl_camera": "rgb"},
            ConfigError,
            r"q_agent.enc_type: vit, expected another one for images \(3, 96, 128\)",
        ),
        ({"suite": "particle", "goal_tolerance": -1}, ConfigError, "goal_tolerance: .*got -1"),
        ({"suite": "d4rl", "task_name": "ant"}, EnvError, "d4rl has door-human-v0"),
    ],
)
def test_what_a_suite_cannot_do_is_refused(options, error, message, tmp_path: Path) -> None:
    task = {"particle": "PARTICLE", "block_pushing": "PUSH"}.get(options["suite"], "")
    options = {"task_name": task, **options}
    with pytest.raises(error, match=message):
        train_rl.run(config(tmp_path / "run", 1, **options))
    assert not (tmp_path / "run").exists()
