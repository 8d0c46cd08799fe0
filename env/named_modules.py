"""Modules that a configuration names, and whether they may be imported.

``gym_module``, and the part before the colon of a gymnasium task (``my_tasks:my/Reach-v0``),
name a module that is imported to register the task. The user is trusted: the command line, and
a configuration that they passed. A checkpoint (its cfg.yaml) and demonstrations are not:
importing a module that they name would run any code under that name. This is decided before the
first environment is made, so that workers receive the result. The address of an environment on
another machine (``remote_url``) is treated in the same way.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Iterable
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from common_utils.run_config import ConfigError
from env.core import EnvError

if TYPE_CHECKING:
    from env.config import EnvConfig

SUITE = "gymnasium"  # the one suite that imports by name
LOOPBACK = ("localhost", "127.0.0.1", "::1")


def add_trust_option(parser: argparse.ArgumentParser) -> None:
    """Add ``--trust_module NAME`` (may be repeated) to programs that load checkpoints."""
    parser.add_argument(
        "--trust_module", action="append", default=[], metavar="NAME",
        help="a module, or the address of an environment (ws://...), that a checkpoint may name: "
        "it is then imported, or connected to (docs/security.md)",
    )  # fmt: skip


def module_names(trust_module: str | Iterable[str]) -> tuple[str, ...]:
    """Names of modules, from a sequence of names, or from a string that joins them by "+"."""
    texts = [trust_module] if isinstance(trust_module, str) else list(trust_module)
    return tuple(name for text in texts for name in text.split("+") if name)


def split_task(task: str) -> tuple[str, str]:
    """(module, id) of a gymnasium task; the module is "" if the task names none."""
    module, colon, env_id = task.partition(":")
    return (module, env_id) if colon else ("", task)


def modules_of(env: EnvConfig) -> tuple[str, ...]:
    """The modules that are imported by name when ``env`` is made."""
    if env.suite != SUITE:
        return ()
    return tuple(m for m in (env.gym_module, split_task(env.task)[0]) if m)


def settle_modules(env: EnvConfig, trust_module: str | Iterable[str], source: str) -> EnvConfig:
    """``env`` (described by ``source``), changed so that only trusted modules are imported.

    If the id is already in gymnasium's registry, a module that is not trusted is left out.
    Otherwise such a module raises ConfigError, which names ``source``, the module and the option
    that allows it.
    """
    strange = [m for m in modules_of(env) if not is_trusted(m, trust_module)]
    prefix, env_id = split_task(env.task)
    for module in strange:
        if not _registered(env_id):
            raise ConfigError(
                f"{source}: names the module '{module}' for '{env.task}', which is not in "
                "gymnasium's registry; the module would be imported and run, so only if you trust "
                f"it: --trust_module {module} (in Python: trust_module='{module}')"
            )
        if module in sys.modules:  # this program's own doing; a worker may have to repeat it
            continue
        _note(f"{source}: module '{module}' is not imported; '{env_id}' is registered without it")
        if module == prefix:
            env = replace(env, task=env_id)
        if module == env.gym_module:
            env = replace(env, gym_module="")
    return env


def check_address(env: EnvConfig, trust_module: str | Iterable[str], source: str) -> None:
    """Raise ConfigError if ``env`` (described by ``source``) is on another machine, unless its
    address is trusted: whoever answers there would get a token, and the checkpoint's actions a
    robot.
    """
    url = env.remote_url
    if not url or urlsplit(url).hostname in LOOPBACK or url in module_names(trust_module):
        return
    raise ConfigError(
        f"{source}: names the environment at '{url}'; it would be connected to, so only if you "
        f"trust it: --trust_module {url} (in Python: trust_module='{url}')"
    )


@lru_cache
def _note(text: str) -> None:
    from common_utils.progress import console  # workers need none

    console().print(f"note: {text}", markup=False)


def is_trusted(module: str, trust_module: str | Iterable[str]) -> bool:
    """Whether ``trust_module`` names the module, or a package that contains it."""
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
    """Import an allowed module. Raises EnvError if it is not a module's name or is not found."""
    if not all(part.isidentifier() for part in module.split(".")):
        raise EnvError(f"{field}: '{module}', expected a module's name such as my_package.my_tasks")
    try:
        importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise EnvError(
            f"{field}: cannot import '{module}' ({error}); it must be installed, or its folder "
            "must be in PYTHONPATH"
        ) from error
