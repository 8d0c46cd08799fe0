"""How to install the packages that are optional (the extras of ``pyproject.toml``)."""

from __future__ import annotations

from common_utils.paths import IS_CHECKOUT


def how_to_install(extra: str) -> str:
    """The command that installs the packages of an extra: here, in this copy of the program."""
    pip = f"pip install 'ibrl[{extra}]'"
    return f"source set_env.sh (or {pip})" if IS_CHECKOUT else pip
