"""The one rule about NaN and infinity: a value that must be finite and is not stops the run.

A loss, gradient norm, reward, observation, action or weight that is not finite raises
:class:`NonFiniteError` (programs end with status 2), within one log interval at the latest and
before it is saved. Whatever was saved earlier stays.

Environment workers use this file, so it imports torch only when it is given tensors.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from common_utils.errors import UserError

if TYPE_CHECKING:
    import torch


class NonFiniteError(UserError):
    """Something is NaN or infinite; the message says what, where and when."""


def check_observed(
    task: str, seed: int, step: int, obs: Mapping[str, np.ndarray], reward: float = 0.0
) -> None:
    """Raise NonFiniteError unless an environment's ``reward`` and float arrays are finite.

    task, seed, step: for the message; ``step`` is 0 for a reset.
    """
    where = f"task '{task}', episode of seed {seed}, step {step}"
    if not math.isfinite(reward):
        raise NonFiniteError(f"{where}: the reward is {reward}, expected a finite number")
    for key, value in obs.items():
        if value.dtype.kind == "f" and not np.isfinite(value).all():
            entry = np.argwhere(~np.isfinite(value))[0]
            at = ", ".join(map(str, entry))
            raise NonFiniteError(
                f"{where}: observation '{key}' is {value[tuple(entry)]} at [{at}], expected "
                "finite numbers"
            )


def check_action(action: np.ndarray, seed: int, step: int, who: str = "the agent") -> None:
    """Raise NonFiniteError unless the action (or actions) that ``who`` chose is finite.

    seed, step: the episode's seed and the steps taken in it so far, for the message.
    """
    if not np.isfinite(action).all():
        shown = ", ".join(f"{x:.4g}" for x in np.ravel(action)[:8])
        raise NonFiniteError(
            f"{who} chose the action [{shown}] at step {step} of the episode of seed {seed}: "
            "it has diverged"
        )


def check_tensors(tree: Any, what: str, when: str) -> None:
    """Raise NonFiniteError unless all floating tensors and arrays of ``tree`` are finite.

    tree: nested dicts, lists and tuples. The message starts with ``when`` and names the first bad
    entry: ``what`` and the keys that lead to it, joined by dots. Waits for the device once.
    """
    name = non_finite_entry(tree, what)
    if name:
        raise NonFiniteError(f"{when}: {name} holds NaN or infinity: training has diverged")


def non_finite_entry(tree: Any, what: str = "") -> str:
    """Name of the first floating tensor or array of ``tree`` with NaN or infinity, else ""."""
    found = list(_flags(tree, what))
    finite = _read([flag for _, flag in found])
    return next((name for (name, _), good in zip(found, finite, strict=True) if not good), "")


def _flags(tree: Any, name: str) -> Iterator[tuple[str, torch.Tensor]]:
    """Name of each floating entry, and a flag on its device that says whether it is finite."""
    import torch

    if isinstance(tree, torch.Tensor):
        if tree.is_floating_point():
            yield name, tree.detach().isfinite().all()
    elif isinstance(tree, np.ndarray):
        if tree.dtype.kind == "f":
            yield name, torch.tensor(bool(np.isfinite(tree).all()))
    elif isinstance(tree, (Mapping, list, tuple)):
        items = tree.items() if isinstance(tree, Mapping) else enumerate(tree)
        for key, value in items:
            yield from _flags(value, f"{name}.{key}" if name else str(key))


def _read(flags: list[torch.Tensor]) -> list[bool]:
    """Flags on any devices, read with one transfer per device."""
    import torch

    out = [True] * len(flags)
    for device in {f.device for f in flags}:
        index = [i for i, f in enumerate(flags) if f.device == device]
        for i, good in zip(index, torch.stack([flags[i] for i in index]).tolist(), strict=True):
            out[i] = good
    return out
