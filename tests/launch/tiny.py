"""A real run of seconds, and the same run made by hand."""

from __future__ import annotations

from pathlib import Path

import train_rl
from common_utils import run_config
from tests.runs import assert_same_run

RL = """
suite: particle
task_name: PARTICLE_2d
use_state: 1
episode_length: 17
num_train_step: 24
log_per_step: 12
num_warm_up_episode: 1
num_eval_episode: 1
batch_size: 8
goal_tolerance: 2.0
q_agent:
  act_method: rl
  device: cpu
  state_critic: {hidden_dim: 32}
  state_actor: {hidden_dim: 32}
"""


def assert_as_by_hand(run: Path, folder: Path) -> None:
    """A trial is bit for bit the run that its configuration gives in this process."""
    cfg = run_config.load(train_rl.MainConfig, run / "cfg.yaml")
    cfg.save_dir, cfg.resume = str(folder / run.name), 0
    train_rl.run(cfg)
    assert_same_run(run, Path(cfg.save_dir))


def starts(out: Path, trial: str) -> int:
    """How often a trial's program was started."""
    text = (out / "logs" / f"{trial}.log").read_text()
    return sum(line.startswith("=== ") for line in text.splitlines())
