"""What a server of an environment offers: its greeting, checked.

The greeting is a map (docs/remote.md)::

    {"protocol": "ibrl-env", "version": 1, "name": "peg",
     "observations": {"joints": {"shape": [7], "dtype": "<f4"}, "wrist": ...},
     "action": {"low": float array [A], "high": float array [A]},
     "control_hz": 20.0, "episode_length": 200 or nil, "deterministic": false, "renders": true}
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from common_utils.errors import shortened
from common_utils.specs import ArraySpec
from common_utils.wire import MAX_BYTES
from env.core import EnvGone

PROTOCOL, VERSION = "ibrl-env", 1
MAX_KEYS, MAX_ACTIONS, MAX_STEPS, MAX_HZ = 64, 1024, 10**7, 1e5


@dataclass(frozen=True)
class Offer:
    """An environment as its server describes it.

    observations: shape and dtype of each, of one step, unstacked.
    low, high: float array of the action's shape: its range, in the environment's own units.
    control_hz: control steps per second.
    episode_length: its own time limit in control steps, None if it has none.
    deterministic: the same seed and actions give the same episode.
    renders: whether it can be asked for pictures.
    """

    name: str
    observations: Mapping[str, ArraySpec]
    low: np.ndarray
    high: np.ndarray
    control_hz: float
    episode_length: int | None
    deterministic: bool
    renders: bool

    def difference(self, other: Offer) -> str:
        """What differs in another offer, "" if nothing does."""
        for field in vars(self):
            mine, theirs = getattr(self, field), getattr(other, field)
            if not np.array_equal(mine, theirs):
                return f"{field}: was {_shown(mine)}, is {_shown(theirs)}"
        return ""


def read_offer(greeting: Any, who: str) -> Offer:
    """The offer in a greeting. Raises EnvGone, which begins with ``who``, for anything else."""
    read = _Reader(greeting, who)
    read.expect("protocol", f"'{PROTOCOL}'", lambda v: v == PROTOCOL)
    read.expect("version", f"{VERSION} (this program's)", lambda v: v == VERSION)
    name = read.expect("name", "a name", lambda v: isinstance(v, str) and 0 < len(v) <= 200)
    hz = read.expect("control_hz", "a positive number", lambda v: _number(v) and 0 < v <= MAX_HZ)
    length = read.expect(
        "episode_length", "an integer of at least 1, or nil", lambda v: v is None or _count(v)
    )
    flags = {
        key: read.expect(key, "true or false", lambda v: isinstance(v, bool))
        for key in ("deterministic", "renders")
    }
    low, high = _range(read)
    return Offer(name, _observations(read), low, high, float(hz), length, **flags)


class _Reader:
    """Takes fields out of a greeting."""

    def __init__(self, greeting: Any, who: str) -> None:
        self.who = who
        if not isinstance(greeting, Mapping):
            raise EnvGone(f"{who}: found the greeting {_shown(greeting)}, expected a map")
        self.fields = greeting

    def expect(self, key: str, expected: str, good: Any) -> Any:
        value = self.fields.get(key)
        if not good(value):
            raise self.wrong(key, value, expected)
        return value

    def wrong(self, key: str, value: Any, expected: str) -> EnvGone:
        return EnvGone(f"{self.who}: {key}: found {_shown(value)}, expected {expected}")


def _observations(read: _Reader) -> dict[str, ArraySpec]:
    given = read.expect(
        "observations", f"a map of 1 to {MAX_KEYS} names",
        lambda v: isinstance(v, Mapping) and 0 < len(v) <= MAX_KEYS and all(map(_is_name, v)),
    )  # fmt: skip
    specs = {key: _spec(read, f"observations.{key}", value) for key, value in given.items()}
    size = sum(spec.nbytes for spec in specs.values())
    if size > MAX_BYTES // 2:
        expected = f"at most {MAX_BYTES // 2}"
        raise read.wrong("observations", f"{size} bytes in all", expected)
    return specs


def _spec(read: _Reader, key: str, value: Any) -> ArraySpec:
    expected = "{shape: sizes, dtype: that of a number, such as <f4}"
    if not isinstance(value, Mapping):
        raise read.wrong(key, value, expected)
    shape, text = value.get("shape"), value.get("dtype")
    if not isinstance(shape, list) or len(shape) > 8 or not all(_count(n) for n in shape):
        raise read.wrong(key, value, expected)
    try:
        dtype = np.dtype(text) if isinstance(text, str) and len(text) < 16 else np.dtype(object)
    except TypeError:
        dtype = np.dtype(object)
    if dtype.kind not in "iuf" or dtype.itemsize > 8:
        raise read.wrong(key, value, expected)
    return ArraySpec(tuple(shape), dtype.newbyteorder("=").str)


def _range(read: _Reader) -> tuple[np.ndarray, np.ndarray]:
    action = read.expect("action", "a map with low and high", lambda v: isinstance(v, Mapping))
    low, high = action.get("low"), action.get("high")
    expected = f"float arrays low < high, finite, of the same 1 to {MAX_ACTIONS} numbers"
    good = (
        isinstance(low, np.ndarray)
        and isinstance(high, np.ndarray)
        and low.dtype == high.dtype
        and low.dtype.kind == "f"
        and low.shape == high.shape
        and 0 < low.size <= MAX_ACTIONS
        and bool(np.isfinite(low).all() and np.isfinite(high).all() and (low < high).all())
    )
    if not good:
        raise read.wrong("action", action, expected)
    return low, high


def _is_name(key: Any) -> bool:
    return isinstance(key, str) and 0 < len(key) <= 200 and key.isprintable()


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _count(value: Any) -> bool:
    return type(value) is int and 1 <= value <= MAX_STEPS


def _shown(value: Any) -> str:
    return shortened(repr(value))
