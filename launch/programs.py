"""The programs that a sweep may start: a row each."""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Mapping
from typing import Any, NamedTuple

from common_utils import config_kinds, run_config
from common_utils.errors import ConfigError
from common_utils.paths import is_input
from workspace.kinds import kind_in


class Program(NamedTuple):
    """A training program: its module, that of its ``MainConfig``, and what it trains."""

    module: str
    config: str
    kind: str

    @property
    def file(self) -> str:
        """The script, which runs from any folder."""
        found = importlib.util.find_spec(self.module)
        if found is None or found.origin is None:
            raise ConfigError(f"program: {self.module} is not installed here")
        return found.origin

    @property
    def config_class(self) -> Any:
        """Its ``MainConfig``."""
        return importlib.import_module(self.config).MainConfig

    @property
    def input_fields(self) -> list[str]:
        """Fields that name files, of every kind of its configuration."""
        kinds = config_kinds.every_kind(self.config_class).values()
        found = [n for own in kinds for n, k in run_config.field_types(own).items() if is_input(k)]
        return list(dict.fromkeys(found))


PROGRAMS: Mapping[str, Program] = {
    "train_rl": Program("train_rl", "workspace.rl_config", "rl"),
    "train_bc": Program("train_bc", "workspace.bc_config", "bc"),
    "train_rl_mw": Program("mw_main.train_rl_mw", "mw_main.train_rl_mw", "rl"),
    "train_bc_mw": Program("mw_main.train_bc_mw", "mw_main.train_bc_mw", "bc"),
}


def program_of(config_path: str, source: str) -> str:
    """The program that a configuration file is for: that of RL or of BC.

    Raises ConfigError, beginning with ``source``, if the file does not say.
    """
    kind = kind_in(run_config.read_yaml(config_path, source))
    if kind is None:
        raise ConfigError(
            f"{source}: '{config_path}' may be of an RL or a BC run; expected a program with it, "
            f"one of {', '.join(PROGRAMS)}"
        )
    return f"train_{kind}"


def planned_steps(kind: str, cfg: Any) -> int:
    """The steps of a whole run, as its records count them; 0 if it ends before the first."""
    if kind == "bc":
        return int(cfg.num_epoch * cfg.epoch_len)
    pretrains = cfg.pretrain_num_epoch > 0 and cfg.pretrain_only
    return 0 if pretrains else int(cfg.num_train_step)


def cores_of(cfg: Any) -> int:
    """The cores that a run keeps busy: its threads, or its environments or those of its evaluations
    if they are more.

    torch's threads are ``torch_threads`` or OMP_NUM_THREADS; without both it takes every core.
    """
    every = len(os.sched_getaffinity(0))
    named = os.environ.get("OMP_NUM_THREADS", "")
    threads = getattr(cfg, "torch_threads", 0) or (int(named) if named.isdigit() else 0) or every
    workers = cfg.num_eval_worker if cfg.mp_eval else 0
    here = getattr(cfg, "rollout", "process") == "process"  # else Ray counts them itself
    envs = getattr(cfg, "num_env", 1) if here else 1
    return int(max(threads, cfg.kernel_threads, workers, envs))
