"""The configuration of an RL run of seconds, from states."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import train_rl
from common_utils import run_config


def config(save_dir: Path, steps: int, **more: Any) -> train_rl.MainConfig:
    options = {
        "use_state": 1,
        "num_train_step": steps,
        "num_warm_up_episode": 1,
        "num_eval_episode": 1,
        "batch_size": 8,
        "q_agent.act_method": "rl",
        "q_agent.device": "cpu",
        "q_agent.state_critic.hidden_dim": 32,
        "q_agent.state_actor.hidden_dim": 32,
        "save_dir": save_dir,
        **more,
    }
    return run_config.parse_args(train_rl.MainConfig, [f"--{k}={v}" for k, v in options.items()])
