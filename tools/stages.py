"""From demonstrations to an evaluated agent: the stages of ``quickstart.py`` and
``tools/implicit_ibrl.py``.

Each stage is an ordinary run of the program that it names, in its own folder. Finished stages are
skipped, and an interrupted one is continued.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import train_bc
import train_rl
from common_utils import run_config
from common_utils.paths import RELEASED
from env.config import EnvConfig
from evaluate.multi_process_eval import EvalPool
from evaluate.rollout import EvalResult
from mw_main import generate_metaworld_dataset as demos
from rl.agent import Agent

CFG_DIR = RELEASED / "metaworld"
EVAL_SEED = 1_000_000  # far from every seed that training or its evaluations use


def make_demos(config_path: Path, folder: Path) -> Path:
    """Record scripted demonstrations, the same for every seed of the later stages."""
    if not (folder / demos.FILE_NAME).exists():
        config = run_config.load(demos.MainConfig, config_path)
        config.output_path = str(folder)
        demos.generate(config)
    return folder / demos.FILE_NAME


def train_bc_policy(config_path: Path, data: Path, save_dir: Path, seed: int) -> Path:
    """Train a BC policy on the demonstrations; returns its weights."""
    config = run_config.load(train_bc.MainConfig, config_path)
    config.dataset.path, config.seed, config.save_dir = str(data), seed, str(save_dir)
    config.resume = 1  # if it was started before
    train_bc.run(config)
    return save_dir / "model0.pt"


def train_ibrl(
    config: train_rl.MainConfig, data: Path, bc_weights: Path, save_dir: Path, seed: int
) -> Path:
    """Train IBRL by ``config``, bootstrapped by the BC policy; returns its best weights."""
    config.preload_datapath, config.bc_policy = str(data), str(bc_weights)
    config.seed, config.save_dir = seed, str(save_dir)
    config.resume = 1  # if it was started before
    train_rl.run(config)
    return save_dir / "model0.pt"


class Evaluated(NamedTuple):
    """The agent, its task, and the results of it and its BC policy in the same new episodes."""

    agent: Agent
    env_cfg: EnvConfig
    bc: EvalResult
    ibrl: EvalResult


def evaluate(weights: Path, bc_weights: Path, num_episode: int, num_proc: int) -> Evaluated:
    """Play ``num_episode`` episodes with each, in ``num_proc`` worker processes (0: this one)."""
    agent, env, params = train_rl.load_model(str(weights), "auto")
    env.close()
    bc_policy, _ = train_bc.load_policy(str(bc_weights), "auto")
    with EvalPool(params, num_proc=num_proc) as pool:
        bc = pool.run(bc_policy, num_episode, EVAL_SEED)
        ibrl = pool.run(agent, num_episode, EVAL_SEED)
    return Evaluated(agent, EnvConfig(**params), bc, ibrl)
