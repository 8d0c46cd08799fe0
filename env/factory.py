"""Makes environments from their configuration. A suite is only imported when it is used."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from common_utils.env_args import suite_of
from common_utils.extras import how_to_install, missing_package
from common_utils.lookup import resolve
from common_utils.run_config import check
from common_utils.success_rule import SuccessRule
from env.config import EnvConfig
from env.core import Env, EnvError
from env.suites import SUITES


def suite_class(suite: str) -> type[Env]:
    """The environment class of a suite; for an unknown name an EnvError that lists the suites."""
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
    try:
        env: Env = made(cfg)
    except ModuleNotFoundError as error:
        if not (package := missing_package(error)):
            raise
        raise EnvError(
            f"suite {cfg.suite}: the package '{package}' is not installed; "
            f"expected what this installs: {how_to_install('sim')}"
        ) from error
    return env


def env_args(cfg: EnvConfig) -> dict[str, Any]:
    """The description of an environment in demonstration files (``data.attrs["env_args"]``)."""
    return suite_class(cfg.suite).env_args(cfg)


def recording_config(cfg: EnvConfig) -> EnvConfig:
    """``cfg``, set to record everything that its suite's demonstration files hold of a step."""
    return suite_class(cfg.suite).recording(cfg)


def adopt_env_args(cfg: EnvConfig, args: Mapping[str, Any], action_repeat: int) -> list[str]:
    """Copy a demonstration file's description of its environment into ``cfg``.

    Returns a sentence for each contradiction to ``cfg``, and for each thing that cannot be played
    here. An unknown suite is treated by the rules of ``Env``.
    """
    suite = suite_class(cfg.suite) if cfg.suite in SUITES else Env
    return suite.adopt(cfg, args, action_repeat)


def control_rate(cfg: EnvConfig) -> float | None:
    """Control steps per second of ``cfg``'s suite, or None if it does not say."""
    return suite_class(cfg.suite).control_rate(cfg)


def check_rate(cfg: EnvConfig, recorded: float | None, source: str) -> str:
    """A note if the rate of recordings could not be compared with the environment's, else "".

    Raises EnvError if they differ: the same action would move the robot further, or less far.
    """
    if recorded is None:
        return ""
    here = control_rate(cfg)
    if here is None:
        return f"recorded at {recorded:g} steps per second; the suite {cfg.suite} has no fixed rate"
    if abs(here - recorded) > 1e-3 * here:
        raise EnvError(
            f"'{source}': recorded at {recorded:g} steps per second, but {cfg.suite}/{cfg.task} is "
            f"controlled at {here:g}, expected the same; dataset.check_fps 0 uses it all the same"
        )
    return ""


def picture_note(args: Mapping[str, Any]) -> str:
    """How a file's pictures differ from those drawn here, by its env_args; "" if they do not."""
    suite = suite_of(args)
    return suite_class(suite).picture_note(args) if suite in SUITES else ""


def success_rule(cfg: EnvConfig) -> SuccessRule:
    """Where recorded episodes of ``cfg``'s suite end, and which of them are successes."""
    return suite_class(cfg.suite).success_rule(cfg)
