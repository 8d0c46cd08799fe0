"""How to install the packages that are optional (the extras of ``pyproject.toml``)."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

from common_utils.errors import UserError
from common_utils.paths import IS_CHECKOUT


def how_to_install(extra: str) -> str:
    """The command that installs the packages of an extra: here, in this copy of the program."""
    pip = f"pip install 'ibrl[{extra}]'"
    if IS_CHECKOUT and extra == "scale":  # for clusters, so set_env.sh does not install it
        return "pip install -r requirements-scale.txt"
    return f"source set_env.sh (or {pip})" if IS_CHECKOUT else pip


def missing_package(error: ModuleNotFoundError) -> str:
    """The package that is not installed; "" if a part of an installed one (or of ours) is absent,
    which is a fault and not a missing package."""
    package = (error.name or "").partition(".")[0]
    return "" if not package or importlib.util.find_spec(package) else package


def optional(module: str, extra: str, what: str) -> Any:
    """An optional package's module; UserError, with the command that installs it, without it.

    what: the option or file that needs it, which begins the message.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if not (package := missing_package(error)):
            raise
        raise UserError(
            f"{what}: the package '{package}' is not installed; expected what this installs: "
            f"{how_to_install(extra)}"
        ) from error


def how_to_build() -> str:
    """The command that builds the C++ modules anew in this copy of the program."""
    if IS_CHECKOUT:
        return "cd common_utils && make"
    return "install the program again, with pip install --force-reinstall --no-deps"
