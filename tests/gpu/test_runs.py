"""Whole runs on a device, which go on on the CPU and come back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import train_bc
import train_rl
from common_utils import run_config
from common_utils.records import read_metrics
from tests.bc.test_dataset import write_robomimic
from tests.runs import weights


def given(config: Any, **options: Any) -> Any:
    """The configuration that these options of a command line give."""
    args = [f"--{k.replace('__', '.')}={v}" for k, v in options.items()]
    return run_config.parse_args(config, args)


def rl_run(save_dir: Path, steps: int, device: str, **more: Any) -> train_rl.Workspace:
    options = {
        "suite": "particle", "task_name": "PARTICLE_2d", "use_state": 1, "episode_length": 9,
        "num_train_step": steps, "log_per_step": 8, "num_warm_up_episode": 1,
        "num_eval_episode": 1, "batch_size": 4, "num_critic_update": 2,
        "q_agent__act_method": "rl", "q_agent__state_critic__hidden_dim": 32,
        "q_agent__state_actor__hidden_dim": 32, "q_agent__device": device,
        "save_dir": save_dir, **more,
    }  # fmt: skip
    return train_rl.run(given(train_rl.MainConfig, **options))


def load_anywhere(run: Path) -> bool:
    """Whether a run's weights are finite, and load without its device."""
    return all(w.device.type == "cpu" and bool(w.isfinite().all()) for w in weights(run).values())


def test_train_rl(device: str, tmp_path: Path) -> None:
    work = rl_run(tmp_path, 16, device)
    assert work.agent.device.type == device
    assert load_anywhere(tmp_path)
    rl_run(tmp_path, 24, "cpu", resume=1)
    assert rl_run(tmp_path, 32, device, resume=1).global_step == 32
    assert [r["step"] for r in read_metrics(tmp_path / "metrics.jsonl")] == [8, 16, 24, 32]
    agent, env, _ = train_rl.load_model(str(tmp_path / "latest.pt"), device)
    obs = {k: torch.from_numpy(v) for k, v in env.reset(seed=0)[0].items()}
    assert agent.act(obs, eval_mode=True).device.type == "cpu"
    env.close()


def test_train_bc(device: str, tmp_path: Path) -> None:
    data, run = write_robomimic(tmp_path / "data.hdf5", size=8), tmp_path / "run"
    for epochs, where in enumerate((device, "cpu", device), start=1):
        options = {
            "dataset__path": data, "dataset__use_state": 1, "num_epoch": epochs,
            "epoch_len": 5, "num_eval_episode": 0, "state_policy__hidden_dim": 32,
            "batch_size": 4, "device": where, "resume": int(epochs > 1), "save_dir": run,
        }  # fmt: skip
        train_bc.run(given(train_bc.MainConfig, **options))
        assert load_anywhere(run)
    assert read_metrics(run / "metrics.jsonl")[-1]["other/epoch"] == 3


@pytest.mark.gpu
@pytest.mark.parametrize("more", [{}, {"replay_storage": "cuda"}, {"replay_prefetch": 2}])
def test_the_same_seed_gives_about_the_same_run_on_a_gpu(
    more: dict[str, Any], tmp_path: Path
) -> None:
    """Sums on a GPU may be added in another order. How batches come there changes nothing."""
    rl_run(tmp_path / "a", 16, "cuda")
    work = rl_run(tmp_path / "b", 16, "cuda", **more)
    assert (work.replay.resident is not None) == ("replay_storage" in more)
    b = weights(tmp_path / "b")
    for name, value in weights(tmp_path / "a").items():
        torch.testing.assert_close(value, b[name], rtol=1e-3, atol=1e-3, msg=name)


@pytest.mark.gpu
def test_a_compiled_run(tmp_path: Path) -> None:
    rl_run(tmp_path, 16, "cuda", q_agent__compile="default")
    rl_run(tmp_path, 24, "cuda", q_agent__compile="default", resume=1)
    assert load_anywhere(tmp_path)
