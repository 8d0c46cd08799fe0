"""Which back end computes which operation: a row per operation, a column per back end.

A back end is a module of this package with a dictionary ``OPERATIONS``: operation -> Kernel. A
call goes to the first back end, in the order of :data:`BACKENDS`, that accepts the operands. The
last, ``plain``, has every operation and accepts everything. A new back end (CUDA, say) is one file
and its name here; it needs none of the others.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch

BACKENDS: tuple[str, ...] = ("cpu", "products", "plain")


@dataclass(frozen=True)
class Kernel:
    """One back end's form of an operation; both functions take the operation's arguments."""

    takes: Callable[..., bool]
    run: Callable[..., Any]


# of the plain back end, which enters them here: torch.compile follows no import
_PLAIN: dict[str, Kernel] = {}


def compilable(operations: dict[str, Kernel]) -> None:
    """Use these operations, made of torch's own, where torch.compile looks on."""
    _PLAIN.update(operations)


@lru_cache(maxsize=1)
def rows() -> dict[str, list[tuple[str, Kernel]]]:
    """Operation -> (back end, its kernel), in the order in which they are tried."""
    found: dict[str, list[tuple[str, Kernel]]] = {}
    for backend in BACKENDS:
        module = importlib.import_module(f"networks.fast.{backend}")
        for operation, kernel in module.OPERATIONS.items():
            found.setdefault(operation, []).append((backend, kernel))
    return found


def _torchs_own() -> bool:
    """Whether somebody looks on who knows torch's own operations only: a graph, or autocast."""
    return torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu")


def find(operation: str, *args: Any) -> tuple[str, Kernel] | None:
    """The first back end that accepts these operands, and its kernel."""
    if _torchs_own():
        return ("plain", _PLAIN[operation]) if operation in _PLAIN else None
    for found in rows().get(operation, ()):
        if found[1].takes(*args):
            return found
    return None


def call(operation: str, *args: Any) -> Any:
    """The operation's result, by the first back end that accepts these operands."""
    if _torchs_own():
        return _PLAIN[operation].run(*args)
    for _, kernel in rows()[operation]:
        if kernel.takes(*args):
            return kernel.run(*args)
    raise NotImplementedError(f"no back end takes {operation} of these operands")


def who(operation: str, *args: Any) -> str:
    """The name of the back end that :func:`call` would use."""
    return next(name for name, kernel in rows()[operation] if kernel.takes(*args))
