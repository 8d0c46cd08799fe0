"""Modules that a configuration names, and whose word is enough to import them.

``gym_module``, and what stands before the colon of a gymnasium task (``my_tasks:my/Reach-v0``),
name a module that is imported so that it registers the task. What the user typed, or wrote in a
configuration that they passed, is theirs. What came with a checkpoint (its cfg.yaml) or with
demonstrations is a stranger's: importing it would run whatever lies under that name. It is
settled here before the first environment is made, so that workers are sent what was settled.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Iterable
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING

from common_utils.run_config import ConfigError
from env.core import EnvError

if TYPE_CHECKING:
    from env.config import EnvConfig

SUITE = "gymnasium"  # the one suite that imports by name


def add_trust_option(parser: argparse.ArgumentParser) -> None:
    """``--trust_module NAME``, any number of times, of programs that load checkpoints."""
    parser.add_argument(
        "--trust_module", action="append", default=[], metavar="NAME",
        help="module that a checkpoint may name and so have imported (docs/security.md)",
    )  # fmt: skip


def module_names(trust_module: str | Iterable[str]) -> tuple[str, ...]:
    """Names of modules from a sequence of them, or from a text that joins them by "+"."""
    texts = [trust_module] if isinstance(trust_module, str) else list(trust_module)
    return tuple(name for text in texts for name in text.split("+") if name)


def split_task(task: str) -> tuple[str, str]:
    """(module, id) of a task of gymnasium; the module is "" where the task names none."""
    module, colon, env_id = task.partition(":")
    return (module, env_id) if colon else ("", task)


def modules_of(env: EnvConfig) -> tuple[str, ...]:
    """What making ``env`` imports by name."""
    if env.suite != SUITE:
        return ()
    return tuple(m for m in (env.gym_module, split_task(env.task)[0]) if m)


def settle_modules(env: EnvConfig, trust_module: str | Iterable[str], source: str) -> EnvConfig:
    """``env``, which ``source`` describes, so that making it imports trusted modules alone.

    A module that is not trusted is not needed, and left out, where the id is in gymnasium's
    registry already. Elsewhere it raises ConfigError, which names ``source``, the module and the
    option that allows it.
    """
    strange = [m for m in modules_of(env) if not is_trusted(m, trust_module)]
    prefix, env_id = split_task(env.task)
    for module in strange:
        if not _registered(env_id):
            raise ConfigError(
                f"{source}: names the module '{module}', which would be imported and run, for "
                f"'{env.task}', which is not in gymnasium's registry; if you trust the module: "
                f"--trust_module {module} (in Python: trust_module='{module}')"
            )
        if module in sys.modules:  # this program's own doing; a worker may have to repeat it
            continue
        _note(f"{source}: module '{module}' is not imported; '{env_id}' is registered without it")
        if module == prefix:
            env = replace(env, task=env_id)
        if module == env.gym_module:
            env = replace(env, gym_module="")
    return env


@lru_cache
def _note(text: str) -> None:
    from common_utils.progress import console  # workers need none

    console().print(f"note: {text}", markup=False)


def is_trusted(module: str, trust_module: str | Iterable[str]) -> bool:
    """Whether ``trust_module`` names the module, or a package that it lies in."""
    allowed = module_names(trust_module)
    return any(module == name or module.startswith(f"{name}.") for name in allowed)


def _registered(env_id: str) -> bool:
    import gymnasium
    from gymnasium.envs.registration import find_highest_version, parse_env_id

    if env_id in gymnasium.registry:
        return True
    try:
        namespace, name, version = parse_env_id(env_id)
    except gymnasium.error.Error:
        return False
    return version is None and find_highest_version(namespace, name) is not None


def import_named(module: str, field: str) -> None:
    """Import a module that was settled. Raises EnvError if it is not one or cannot be found."""
    if not all(part.isidentifier() for part in module.split(".")):
        raise EnvError(f"{field}: '{module}', expected a module's name such as my_package.my_tasks")
    try:
        importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise EnvError(
            f"{field}: cannot import '{module}' ({error}); it must be installed, or its folder "
            "must be in PYTHONPATH"
        ) from error
