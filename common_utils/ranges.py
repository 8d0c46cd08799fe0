"""Ranges of config fields, as annotations: ``Annotated[int, AtLeast(1)]``, ``Width``, ``Share``.

``run_config`` checks them for every program, says them in ``--help`` and names the field of a
value that is outside. A field may have several (``AtLeast(0), Below(1)``). NaN is always refused
and infinity unless ``Infinite()`` is among them. Networks and replays compute in float32, so a
float must be within its limits as float32 as well: 0.99999999999 is not below 1 there.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

SMALLEST, LARGEST = 2.0**-126, (2 - 2.0**-23) * 2.0**127
"""Positive numbers of full precision in float32: about 1.2e-38 to 3.4e+38."""


def as_float32(value: float) -> float:
    """``value`` as float32 computes with it: beyond the largest infinite, below the smallest 0."""
    rounded = ctypes.c_float(value).value
    return rounded if abs(rounded) >= SMALLEST else 0.0


def fits_float32(value: float) -> bool:
    """Whether float32 neither overflows nor underflows (infinity itself is not looked at here)."""
    return value == 0 or SMALLEST <= abs(as_float32(value)) <= LARGEST


def _exact(value: float) -> float:
    return value


class Limit:
    """What a number must satisfy."""

    def allows(self, value: Any) -> bool:
        """Whether ``value`` (of the field's type, not NaN) satisfies it, floats also as float32."""
        return self._holds(value, _exact) and (
            not isinstance(value, float) or self._holds(value, as_float32)
        )

    def _holds(self, value: Any, read: Callable[[float], float]) -> bool:
        """Whether it is satisfied with the value and the ends of the range read by ``read``."""
        raise NotImplementedError


@dataclass(frozen=True)
class AtLeast(Limit):
    """low <= value."""

    low: float

    def _holds(self, value: Any, read: Callable[[float], float]) -> bool:
        return read(value) >= read(self.low)


@dataclass(frozen=True)
class Above(Limit):
    """low < value."""

    low: float

    def _holds(self, value: Any, read: Callable[[float], float]) -> bool:
        return read(value) > read(self.low)


@dataclass(frozen=True)
class AtMost(Limit):
    """value <= high."""

    high: float

    def _holds(self, value: Any, read: Callable[[float], float]) -> bool:
        return read(value) <= read(self.high)


@dataclass(frozen=True)
class Below(Limit):
    """value < high."""

    high: float

    def _holds(self, value: Any, read: Callable[[float], float]) -> bool:
        return read(value) < read(self.high)


@dataclass(frozen=True)
class Between(Limit):
    """low <= value <= high."""

    low: float
    high: float

    def _holds(self, value: Any, read: Callable[[float], float]) -> bool:
        return read(self.low) <= read(value) <= read(self.high)


@dataclass(frozen=True)
class MultipleOf(Limit):
    """value = k * step."""

    step: int

    def allows(self, value: Any) -> bool:
        return bool(value % self.step == 0)


class OneOf(Limit):
    """One of a few numbers."""

    def __init__(self, *values: float) -> None:
        self.values = values

    def allows(self, value: Any) -> bool:
        return value in self.values


class Or(OneOf):
    """Values that mean something else (-1: never) and are allowed besides the range."""


class Infinite:
    """Infinity is a value (the other limits hold for it too)."""


def allowed(value: Any, limits: Sequence[Any]) -> bool:
    """Whether a number satisfies all of a field's limits, or is one of its ``Or`` values."""
    if any(isinstance(limit, Or) and limit.allows(value) for limit in limits):
        return True
    rest = (x for x in limits if isinstance(x, Limit) and not isinstance(x, Or))
    return all(limit.allows(value) for limit in rest)


def in_words(what: str, limits: Sequence[Any]) -> str:
    """``what`` ("an integer") with its limits: "-1 or an integer of at least 1"."""
    low = high = ""
    choices, steps, besides = [], [], []
    for limit in limits:
        if isinstance(limit, Or):
            besides += [_number(v) for v in limit.values]
        elif isinstance(limit, OneOf):
            choices += [_number(v) for v in limit.values]
        elif isinstance(limit, MultipleOf):
            steps.append(f", a multiple of {limit.step}")
        if isinstance(limit, (AtLeast, Between)):
            low = f"[{_number(limit.low)}"
        if isinstance(limit, Above):
            low = f"({_number(limit.low)}"
        if isinstance(limit, (AtMost, Between)):
            high = f"{_number(limit.high)}]"
        if isinstance(limit, Below):
            high = f"{_number(limit.high)})"
    text = f"one of {', '.join(choices)}" if choices else f"{what}{_interval(low, high)}"
    infinite = ["inf"] if any(isinstance(limit, Infinite) for limit in limits) else []
    return " or ".join([*besides, text + "".join(steps), *infinite])


def _interval(low: str, high: str) -> str:
    if low and high:
        return f" within {low}, {high}"
    if low:
        return f" {'of at least' if low[0] == '[' else 'above'} {low[1:]}"
    if high:
        return f" {'of at most' if high[-1] == ']' else 'below'} {high[:-1]}"
    return ""


def _number(value: float) -> str:
    return str(int(value)) if float(value).is_integer() and abs(value) < 1e15 else f"{value:g}"


# ------------------------------------------------------------------ what many fields are

# seeds of numpy, torch and CUDA are derived by adding up to 3
Seed = Annotated[int, Between(0, 2**32 - 4)]
NotNegative = Annotated[int, AtLeast(0)]
Positive = Annotated[int, AtLeast(1)]
AllOr = Annotated[int, AtLeast(1), Or(-1)]
"""A count, or -1: all (or none, or never)."""
Threads = Annotated[int, Between(0, 256)]
Workers = Annotated[int, Between(1, 256)]
Stack = Annotated[int, Between(1, 256)]
PictureSize = Annotated[int, Between(1, 4096)]
Width = Annotated[int, Between(1, 16384)]
"""Units of a layer: two layers as wide as this are 1 GiB of weights."""
Layers = Annotated[int, Between(1, 64)]
BatchSize = Annotated[int, Between(1, 2**20)]
Share = Annotated[float, Between(0, 1)]
Dropout = Annotated[float, AtLeast(0), Below(1)]
PositiveNumber = Annotated[float, Above(0)]
NotNegativeNumber = Annotated[float, AtLeast(0)]
EpisodeLength = Annotated[int, Between(1, 1000000)]
RewardScale = Annotated[float, Above(0), AtMost(1e6)]
# wide enough for anything that was ever used, and float32 holds what comes of them
Temperature = Annotated[float, Between(1e-6, 1e6)]
StepSize = Annotated[float, Between(1e-12, 1e6)]
NoiseScale = Annotated[float, Between(0, 1e6)]
