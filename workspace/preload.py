"""The demonstrations of an RL run: read by its options, ended by its suite's rule, checked."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from bc.dataset import DemoOptions, ReplayDemos, read_demos
from bc.demos import DatasetError
from common_utils.kept_weights import KeptWeights
from common_utils.paths import split_paths
from common_utils.run_config import CFG_NAME, ConfigError
from common_utils.specs import EnvSpec
from env.config import EnvConfig
from env.factory import adopt_env_args, check_rate, picture_note, success_rule
from workspace.build_agent import own_modules
from workspace.build_policy import load_config as load_bc_config
from workspace.rl_config import MainConfig


def demo_options(cfg: MainConfig, weights: KeptWeights) -> DemoOptions:
    """How a run's demonstrations are read: by ``cfg.dataset``, and with the action range that its
    BC policies (``weights``) read the same file with.

    Raises ConfigError if the run sets a different range.
    """
    options = replace(cfg.dataset)
    # use_bc 0: only the policy's settings are used, and its weights may be missing
    for path in weights.files or (split_paths(cfg.bc_policy) if cfg.bc_policy else []):
        if not (Path(path).parent / CFG_NAME).is_file():
            continue
        theirs = load_bc_config(path, trust_module=own_modules(cfg)).dataset
        if not theirs.action_low or not _same_file(theirs.path, cfg.preload_datapath):
            continue
        limits = (theirs.action_low, theirs.action_high)
        if not options.action_low:
            options = replace(options, action_low=limits[0], action_high=limits[1])
        elif (options.action_low, options.action_high) != limits:
            raise ConfigError(
                f"dataset.action_low {options.action_low}, dataset.action_high "
                f"{options.action_high}: bc_policy '{path}' learned from "
                f"'{cfg.preload_datapath}' with {limits[0]}, {limits[1]}"
            )
    return options


def _same_file(a: str, b: str) -> bool:
    return Path(a).exists() and Path(b).exists() and os.path.samefile(a, b)


def read_preload(
    cfg: MainConfig,
    env_cfg: EnvConfig,
    spec: EnvSpec,
    keys: Sequence[str],
    weights: KeptWeights | None = None,
) -> ReplayDemos:
    """The demonstrations of a run, ended by the suite's rule and checked against ``spec``.

    ``weights``: its BC policies'. Raises DatasetError or SpecError if the files do not fit.
    """
    options = demo_options(cfg, weights or KeptWeights())
    demos = read_demos(
        cfg.preload_datapath,
        options,
        rule=success_rule(env_cfg),
        cameras=env_cfg.cameras,
        use_state=bool(cfg.use_state),
        num_data=cfg.preload_num_data,
        spec=spec,
        keys=keys,
    )
    _check_recorded(cfg, env_cfg, demos)
    if options.check_fps and (note := check_rate(env_cfg, demos.fps, cfg.preload_datapath)):
        demos.notes.append(note)
    if env_cfg.cameras and (note := picture_note(demos.env_args)):
        demos.notes.append(note)
    if options.action_low:
        low, high = options.action_low, options.action_high
        demos.notes.append(f"actions are scaled from {low} .. {high} to [-1, 1]")
    learns_from_them = cfg.mix_rl_rate < 1 or cfg.pretrain_num_epoch > 0 or cfg.add_bc_loss > 0
    if learns_from_them and not demos.num_success:
        raise DatasetError(
            f"'{cfg.preload_datapath}': none of its {len(demos)} demonstrations is a success, so "
            f"there is nothing to imitate; each ends at {demos.ends_at}"
        )
    return demos


def _check_recorded(cfg: MainConfig, env_cfg: EnvConfig, demos: ReplayDemos) -> None:
    """Check that actions mean the same in the run's environment as in the recording."""
    theirs = replace(env_cfg)
    problems = adopt_env_args(theirs, demos.env_args, env_cfg.action_repeat)
    if theirs.ctrl_delta != env_cfg.ctrl_delta:
        problems.append("its actions are absolute, those of the run's environment are relative")
    if problems:
        raise DatasetError(f"'{cfg.preload_datapath}', env_args: {'; '.join(problems)}")
