"""The memory that a trial takes, computed from the parts that its program computes it from.

It needs the trial's environment, or its demonstrations, so it is done in a process of its own: the
sweep itself stays small.
"""

from __future__ import annotations

import os
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context

from bc.dataset import RobomimicDataset
from common_utils import run_config
from env.factory import make_env
from launch.programs import PROGRAMS
from launch.trial import Trial
from workspace.bc_config import MainConfig as BcConfig
from workspace.build_agent import bc_weights, build_agent, inherit_env, load_bc_policies
from workspace.build_policy import fill_in
from workspace.network_memory import agent_footprint, policy_footprint
from workspace.prepare_rl import memory_needs
from workspace.rl_config import MainConfig as RlConfig
from workspace.rl_config import rl_env_config

MORE = 512 << 20
"""Bytes that a trainer takes besides: what torch loads in the first update, logs, a state being
written (measured: 190 to 430 MiB), and about what a process of its evaluation takes."""


def memory_of(trial: Trial) -> int:
    """Bytes that a trial will take at most, about; 0 if that cannot be found out, because the
    trial would not start either: then it reports why itself."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        try:
            return pool.submit(_measured, trial).result()
        except BrokenProcessPool:
            return 0


def _measured(trial: Trial) -> int:
    try:
        program = PROGRAMS[trial.program]
        cfg = run_config.parse_args(program.config_class, trial.options)
        return bc_memory(cfg) if program.kind == "bc" else rl_memory(cfg)
    except Exception:  # whatever it is, the trial meets it as well
        return 0


def rl_memory(cfg: RlConfig) -> int:
    """Of an RL run: this process once it has built the run's parts, the whole replay, and what
    training adds. Bytes."""
    inherit_env(cfg)
    policies, cameras = load_bc_policies(cfg, weights=bc_weights(cfg))
    env = make_env(rl_env_config(cfg, cameras))
    try:
        agent = build_agent(cfg, env.spec, policies)
        needs = memory_needs(cfg, env.spec, agent)
        if cfg.replay_storage not in ("ram", "cuda"):  # on disk
            needs = {}
        networks = agent_footprint(cfg, env.spec, len(policies))
        return sum(need.bytes for need in needs.values()) + networks.total + _programs(cfg)
    finally:
        env.close()


def bc_memory(cfg: BcConfig) -> int:
    """Of a BC run: this process once it has read the demonstrations, and what training adds."""
    data = RobomimicDataset(cfg.dataset, seed=0)
    try:
        fill_in(cfg, data)
        return policy_footprint(cfg).total + _programs(cfg)
    finally:
        data.close()


def _programs(cfg: RlConfig | BcConfig) -> int:
    """The trainer, and processes that play its evaluations."""
    return own_memory() + MORE * (1 + (cfg.num_eval_worker if cfg.mp_eval else 0))


def own_memory(process: int | str = "self") -> int:
    """Bytes of RAM that a process has; 0 if it has ended."""
    try:
        with open(f"/proc/{process}/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError):
        return 0
