"""Checks the values of config fields against their types, and describes what a type accepts."""

from __future__ import annotations

import math
import re
import types
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from common_utils.ranges import Infinite, allowed, fits_float32, in_words

_FLAG = "0/1 switch"
Flag = Annotated[int, _FLAG]
"""An int that is 0 or 1; ``true``/``false`` are read as 1/0; ``--resume`` alone means 1."""


def is_switch(kind: Any) -> bool:
    return kind is bool or (get_origin(kind) is Annotated and _FLAG in get_args(kind))


def expectation(kind: Any) -> str:
    if is_switch(kind):
        return "0 or 1" if kind is not bool else "true or false"
    origin, args = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return in_words(expectation(args[0]), args[1:])
    if origin is Literal:
        return "one of " + ", ".join(str(a) or "''" for a in args)
    if origin in (Union, types.UnionType):
        return " or ".join(expectation(a) for a in args)
    if origin in (list, tuple):
        item = next((a for a in args if a is not ...), Any)
        return f"a list of {expectation(item)} such as [a, b]"
    if origin is dict:
        return "a mapping"
    names = {int: "an integer", float: "a number", str: "a string", type(None): "null"}
    return names.get(kind, getattr(kind, "__name__", str(kind)))


class Mismatch(Exception):
    """The value does not fit the type (turned into a ConfigError with the field's name).

    Its text, if any, follows the expectation.
    """


def coerce(value: Any, kind: Any) -> Any:
    """``value`` as ``kind``, or Mismatch. Lossless conversions only."""
    origin, args = get_origin(kind), get_args(kind)
    if kind is Any:
        return value
    if is_switch(kind):
        if value not in (0, 1) or not isinstance(value, (bool, int)):
            raise Mismatch
        return bool(value) if kind is bool else int(value)
    if origin is Annotated:
        return _coerce_limited(value, args[0], args[1:])
    if origin is Literal:
        if not any(value == a and type(value) is type(a) for a in args):
            raise Mismatch
        return value
    if origin in (Union, types.UnionType):
        reason = ""
        for option in args:
            try:
                return coerce(value, option)
            except Mismatch as mismatch:
                reason = reason or str(mismatch)
        raise Mismatch(reason)
    if origin in (list, tuple):
        return _coerce_sequence(value, origin, args)
    if origin is dict or kind is dict:
        if not isinstance(value, dict):
            raise Mismatch
        key_kind, value_kind = args or (Any, Any)
        return {coerce(k, key_kind): coerce(v, value_kind) for k, v in value.items()}
    return _coerce_scalar(value, kind)


def _coerce_sequence(value: Any, origin: Any, args: tuple[Any, ...]) -> Any:
    if not isinstance(value, (list, tuple)):
        raise Mismatch
    if origin is list or (len(args) == 2 and args[1] is ...):
        return origin(coerce(v, args[0]) for v in value)
    if len(value) != len(args):
        raise Mismatch
    return tuple(coerce(v, a) for v, a in zip(value, args, strict=True))


def _coerce_limited(value: Any, kind: Any, limits: tuple[Any, ...]) -> Any:
    infinite = any(isinstance(x, Infinite) for x in limits)
    out = math.inf if infinite and value in (math.inf, "inf") else coerce(value, kind)
    if not allowed(out, limits):
        raise Mismatch
    return out


# YAML 1.1 reads 1e-4 (no dot) as a string; configs have always used this form
_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")


def _coerce_scalar(value: Any, kind: Any) -> Any:
    if kind is float or kind is int:
        return _coerce_number(value, kind)
    if kind is type(None) or kind is None:
        if value is None:
            return None
        raise Mismatch
    if isinstance(kind, type) and isinstance(value, kind):
        if isinstance(value, str) and (bad := _NO_NAME.search(value)):
            raise Mismatch(f" without the character {bad[0]!a}")
        return value
    raise Mismatch


# what YAML can write, and no name of a file can hold: zero, and halves of characters other than
# those that stand for bytes
_NO_NAME = re.compile(r"[\0\ud800-\udc7f\udd00-\udfff]")

# above this, a float cannot represent every integer
MAX_INTEGER = 2**53


def _coerce_number(value: Any, kind: type[int] | type[float]) -> int | float:
    if isinstance(value, str) and _NUMBER.fullmatch(value.strip()):
        value = float(value)
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not _is_finite(value):
        raise Mismatch
    if kind is float:
        if not fits_float32(value):
            raise Mismatch(" that float32 holds (0, or 1.2e-38 to 3.4e+38 in size)")
        return float(value) + 0.0  # the sum turns -0.0, which has no meaning of its own, into 0.0
    if not float(value).is_integer() or abs(value) > MAX_INTEGER:
        raise Mismatch
    return int(value)  # 2e5 counts as an integer


def _is_finite(value: int | float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer too large for a float
        return False
