"""Making environments by configuration. A suite is imported only when it is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from common_utils.lookup import resolve
from common_utils.run_config import check
from common_utils.success_rule import SuccessRule
from env.config import EnvConfig
from env.core import Env, EnvError
from env.suites import SUITES


def suite_class(suite: str) -> type[Env]:
    """The environment class of a suite; EnvError naming the suites for any other."""
    if suite not in SUITES:
        raise EnvError(f"suite '{suite}' is unknown; expected one of {', '.join(SUITES)}")
    found: type[Env] = resolve(SUITES[suite])
    return found


def make_env(cfg: EnvConfig | dict[str, Any]) -> Env:
    """The environment of a configuration (or of its plain dict); ConfigError for a bad value."""
    if isinstance(cfg, dict):
        cfg = EnvConfig(**cfg)
    made: Any = suite_class(cfg.suite)
    check(cfg)
    env: Env = made(cfg)
    return env


def env_args(cfg: EnvConfig) -> dict[str, Any]:
    """What files of demonstrations say of the environment (``data.attrs["env_args"]``)."""
    return suite_class(cfg.suite).env_args(cfg)


def recording_config(cfg: EnvConfig) -> EnvConfig:
    """``cfg`` with all that its suite's files of demonstrations hold of a step."""
    return suite_class(cfg.suite).recording(cfg)


def adopt_env_args(cfg: EnvConfig, args: Mapping[str, Any], action_repeat: int) -> list[str]:
    """Put what a file of demonstrations says of its environment into ``cfg``.

    Returns what contradicts ``cfg`` or cannot be played here, a sentence each. A suite that
    nothing is known of takes what any environment has.
    """
    suite = suite_class(cfg.suite) if cfg.suite in SUITES else Env
    return suite.adopt(cfg, args, action_repeat)


def success_rule(cfg: EnvConfig) -> SuccessRule:
    """Where recorded episodes of ``cfg``'s suite end, and which of them are successes."""
    return suite_class(cfg.suite).success_rule(cfg)
