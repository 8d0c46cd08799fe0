"""Prepares a BC run's first step: weights, optimiser, environments, its first output."""

from __future__ import annotations

from dataclasses import asdict

import torch

from bc.base import BasePolicy
from bc.dataset import RobomimicDataset
from bc.demos import DatasetError
from bc.registry import POLICIES
from common_utils.ibrl_utils import count_parameters
from common_utils.logger import RunLogger
from common_utils.run_config import ConfigError
from common_utils.seeding import seed_for
from common_utils.specs import SpecError
from env.core import EnvError
from env.factory import check_rate, picture_note
from evaluate.multi_process_eval import EvalPool
from evaluate.rollout import EvalError
from networks.optim import KerasAdam
from workspace.bc_config import MainConfig
from workspace.build_policy import check_plays_in
from workspace.weights import load_weights, put_weights


def require_learner(cfg: MainConfig) -> None:
    """Raise ConfigError for a kind of policy that learns nothing here."""
    if not POLICIES[cfg.kind].learns:
        kinds = ", ".join(kind for kind, row in POLICIES.items() if row.learns)
        raise ConfigError(
            f"policy_type: {cfg.policy_type}, expected one that learns from demonstrations: {kinds}"
        )


def demonstrations(cfg: MainConfig) -> RobomimicDataset:
    """The run's demonstrations, with as many steps' actions as its policy's loss needs."""
    return RobomimicDataset(
        cfg.dataset, seed=seed_for(cfg.seed, "dataset"), horizon=cfg.own_section.horizon
    )


def set_weights(policy: BasePolicy, cfg: MainConfig, data: RobomimicDataset) -> None:
    """Load the weights of ``load_model``, or fit new ones to the data's statistics.

    Raises WeightsError for a file that does not fit, DatasetError for data without statistics.
    """
    if cfg.load_model != "none":
        weights = load_weights(cfg.load_model, "load_model")
        put_weights(policy, weights, cfg.load_model, "load_model")
        return
    try:
        policy.fit(data.first_samples(policy.fit_samples))
    except SpecError as error:
        raise DatasetError(f"'{cfg.dataset.path}': {error}") from error


def build_optimizer(policy: BasePolicy, cfg: MainConfig) -> torch.optim.Optimizer:
    """The optimiser of all the policy's parameters."""
    if cfg.optimizer == "keras_adam":
        return KerasAdam(policy.parameters(), lr=cfg.lr)
    if cfg.weight_decay == 0:
        return torch.optim.Adam(policy.parameters(), lr=cfg.lr, fused=True)
    return torch.optim.AdamW(
        policy.parameters(), lr=cfg.lr, weight_decay=cfg.weight_decay, fused=True
    )


def open_pool(cfg: MainConfig, data: RobomimicDataset, policy: BasePolicy) -> EvalPool | None:
    """The evaluation environments, built early so that a missing simulator is reported at once.

    None if no games are played. Raises EnvError or EvalError if they cannot be built or do not
    provide what the policy reads.
    """
    if not cfg.evaluates:
        return None
    try:
        if not cfg.env.suite or not cfg.env.task:
            recorded = f"was recorded in '{data.suite}', which is not one of the suites"
            silent = "does not say which environment it was recorded in"
            raise EnvError(
                f"'{cfg.dataset.path}' {recorded if data.suite else silent} "
                "(env_args, env_cfg.json); set --env.suite and --env.task"
            )
        if cfg.dataset.check_fps and (note := check_rate(cfg.env, data.fps, cfg.dataset.path)):
            data.notes.append(note)
        pool = EvalPool(asdict(cfg.env), cfg.num_eval_worker if cfg.mp_eval else 0)
        check_plays_in(pool, policy, f"dataset.path: the policy on {cfg.dataset.path}")
    except (EnvError, EvalError, SpecError) as error:  # EvalError: reported by a worker process
        raise type(error)(f"{error}\n(or train without playing: --num_eval_episode 0)") from error
    return pool


def say_what_runs(
    log: RunLogger,
    cfg: MainConfig,
    data: RobomimicDataset,
    policy: BasePolicy,
    device: torch.device,
) -> None:
    """Print the run's first lines: the data, the policy, the number of steps."""
    drawn = picture_note(data.env_args) if data.cameras else ""
    for note in filter(None, [*data.notes, drawn]):
        log.print(f"note: {cfg.dataset.path}: {note}")
    for note in policy.notes:
        log.print(f"warning: {cfg.dataset.path}: {note}")
    log.print(
        f"{data.num_episodes} demonstrations, {data.num_steps} steps of {data.task_name or '?'}: "
        f"{data.nbytes / 2**20:.1f} MiB in RAM{', images read from the file' if data.lazy else ''}"
    )
    log.print(
        f"{type(policy).__name__}, {count_parameters(policy):,} parameters on "
        f"{device}; {cfg.num_epoch} epochs of {cfg.epoch_len} steps"
        f"{'' if cfg.evaluates else '; no games are played, the newest weights are kept'}"
    )
