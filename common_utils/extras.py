"""How to install the packages that are optional (the extras of ``pyproject.toml``)."""

from __future__ import annotations

import importlib.util

from common_utils.paths import IS_CHECKOUT


def how_to_install(extra: str) -> str:
    """The command that installs the packages of an extra: here, in this copy of the program."""
    pip = f"pip install 'ibrl[{extra}]'"
    return f"source set_env.sh (or {pip})" if IS_CHECKOUT else pip


def missing_package(error: ModuleNotFoundError) -> str:
    """The package that is not installed; "" if a part of an installed one (or of ours) is absent,
    which is a fault and not a missing package."""
    package = (error.name or "").partition(".")[0]
    return "" if not package or importlib.util.find_spec(package) else package


def how_to_build() -> str:
    """The command that builds the C++ modules anew in this copy of the program."""
    if IS_CHECKOUT:
        return "cd common_utils && make"
    return "install the program again, with pip install --force-reinstall --no-deps"
