"""TwoArmTransport and ToolHang: their configurations train, on the real simulations."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import train_bc
import train_rl
from common_utils import run_config
from common_utils.demo_file import Recording, write_demos
from common_utils.robomimic_keys import STATE_DIMS
from env.config import EnvConfig
from env.factory import env_args
from env.robosuite.env import RobosuiteEnv

CFGS = Path(__file__).resolve().parents[2] / "release" / "cfgs"
# states of the released widths have hundreds of MB, which take longer to write than all else
NARROW_BC = {"state_policy.hidden_dim": 32}
NARROW_RL = {"q_agent.state_critic.hidden_dim": 32, "q_agent.state_actor.hidden_dim": 32}
TASKS = {"transport": ("TwoArmTransport", 14), "tool_hang": ("ToolHang", 7)}


def record(task: str, folder: Path) -> Path:
    """Three steps of the task, stored as a demonstration (the experts take hundreds)."""
    cfg = EnvConfig(suite="robosuite", task=task, record_sim_state=1)
    env = RobosuiteEnv(cfg)
    recording = Recording()
    _, info = env.reset(seed=1)
    for t in range(3):
        before, state = dict(env.raw_obs), info["sim_state"]
        action = np.full(env.spec.action_dim, 0.1)
        info = env.step(action)[4]
        recording.append(before, state, action, float(t == 2))
    env.close()
    return write_demos(folder, [recording], [], env_args(cfg))


def load(config_class: type, file: str, **options: object) -> object:
    args = [f"--{k}={v}" for k, v in options.items()]
    return run_config.parse_args(config_class, [f"--config_path={CFGS / file}", *args])


@pytest.mark.parametrize("name", TASKS)
def test_configurations_train(name: str, tmp_path: Path) -> None:
    task, action_dim = TASKS[name]
    data = record(task, tmp_path / "demos")
    bc = load(
        train_bc.MainConfig,
        f"robomimic_bc/{name}_state.yaml",
        **{"dataset.path": data, "dataset.num_data": 1, "save_dir": tmp_path / "bc", "use_wb": 0},
        **{"num_epoch": 1, "epoch_len": 1, "num_eval_episode": 0, "num_final_episode": 0},
        **NARROW_BC,
    )
    policy = train_bc.run(bc).policy
    assert policy.action_dim == action_dim
    for method in ("ibrl", "rlpd", "rft"):
        cfg = load(
            train_rl.MainConfig,
            f"robomimic_rl/{name}_state_{method}.yaml",
            **{"preload_datapath": data, "preload_num_data": 1, "num_warm_up_episode": 0},
            **{"num_train_step": 3, "num_eval_episode": 0, "use_wb": 0, "batch_size": 4},
            **({"bc_policy": tmp_path / "bc/model0.pt"} if method == "ibrl" else {}),
            **({"pretrain_num_epoch": 1, "pretrain_epoch_len": 1} if method == "rft" else {}),
            **NARROW_RL,
            save_dir=tmp_path / method,
        )
        work = train_rl.run(cfg)
        assert (work.spec.task, work.spec.action_dim) == (task, action_dim)
        assert work.play.lanes[0].obs["state"].shape == (3 * STATE_DIMS[task],)
        assert work.train_step == 1 and (tmp_path / method / "model0.pt").is_file()
