"""Ranges of config fields, as annotations: ``Annotated[int, AtLeast(1)]``, ``Width``, ``Share``.

``run_config`` checks them for every program, says them in ``--help`` and names the field of a
value that is outside. A field may have several (``AtLeast(0), Below(1)``). NaN is always refused
and infinity unless ``Infinite()`` is among them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any


class Limit:
    """What a number must satisfy."""

    def allows(self, value: Any) -> bool:
        """Whether ``value`` (of the field's type, not NaN) satisfies it."""
        raise NotImplementedError


@dataclass(frozen=True)
class AtLeast(Limit):
    """low <= value."""

    low: float

    def allows(self, value: Any) -> bool:
        return bool(value >= self.low)


@dataclass(frozen=True)
class Above(Limit):
    """low < value."""

    low: float

    def allows(self, value: Any) -> bool:
        return bool(value > self.low)


@dataclass(frozen=True)
class AtMost(Limit):
    """value <= high."""

    high: float

    def allows(self, value: Any) -> bool:
        return bool(value <= self.high)


@dataclass(frozen=True)
class Below(Limit):
    """value < high."""

    high: float

    def allows(self, value: Any) -> bool:
        return bool(value < self.high)


@dataclass(frozen=True)
class Between(Limit):
    """low <= value <= high."""

    low: float
    high: float

    def allows(self, value: Any) -> bool:
        return bool(self.low <= value <= self.high)


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
Layers = Annotated[int, Between(1, 256)]
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
