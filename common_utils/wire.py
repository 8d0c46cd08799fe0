"""Messages between processes: msgpack with numpy arrays, as openpi's clients and servers pack them.

An array travels as the map ``{b"__ndarray__": True, b"data": bytes, b"dtype": "<f4",
b"shape": [2, 3]}``, a numpy scalar as ``{b"__npgeneric__": True, b"data": 1.5, b"dtype": "<f4"}``;
maps, lists, text, bytes and plain numbers are msgpack's own. :func:`pack` writes the same bytes as
``openpi_client.msgpack_numpy``. :func:`unpack` takes bytes from anybody: nothing in them is run,
only booleans, numbers and text may be in arrays, and no message unpacks to much more than its size.

``common_utils/link.py`` sends them.
"""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np

from common_utils.errors import UserError, shortened
from common_utils.extras import optional

MAX_BYTES = 64 * 2**20
"""Of one message, unless its reader says otherwise."""
MAX_ITEMS = 10_000
"""Entries of a list or a map: large things are arrays."""
MAX_OBJECTS = 100_000
"""Entries of all lists and maps of a message together."""
MAX_AXES = 16

_DTYPE = re.compile(r"[<>|=]?[biufSU][0-9]{1,6}")  # as dtype.str writes booleans, numbers, text
_LARGEST_NUMBER = 8  # bytes; float128 is not the same everywhere
_PLAIN = {"b": bool, "i": int, "u": int, "f": float, "U": str, "S": bytes}  # of scalars, by kind
_ARRAY = {b"__ndarray__", b"data", b"dtype", b"shape"}
_SCALAR = {b"__npgeneric__", b"data", b"dtype"}


class WireError(UserError):
    """A message that cannot be packed, or bytes that are not a message."""


def pack(message: Any) -> bytes:
    """``message`` (maps, lists, text, bytes, numbers, numpy arrays) as bytes.

    Raises WireError for anything else, and for arrays of objects, records or complex numbers.
    """
    try:
        return bytes(_msgpack().packb(message, default=_packed))
    except (TypeError, ValueError, OverflowError) as error:
        raise WireError(f"message: {error}, expected numbers, text, arrays, lists, maps") from None


def unpack(data: bytes | str, max_bytes: int = MAX_BYTES) -> Any:
    """The message in ``data``; arrays are writable, contiguous and of this machine's byte order.

    Raises WireError for what :func:`pack` does not write, and for more than ``max_bytes``.
    """
    if isinstance(data, str):
        raise WireError(f"message: found text '{shortened(data)}', expected msgpack bytes")
    if len(data) > max_bytes:
        raise WireError(f"message: found {len(data)} bytes, expected at most {max_bytes}")
    reader, limit = _Reader(), min(len(data), MAX_ITEMS)
    try:
        return _msgpack().unpackb(
            data,
            object_hook=reader.map,
            list_hook=reader.list,
            ext_hook=_refuse_extension,
            max_array_len=limit,
            max_map_len=limit,
        )
    except WireError:
        raise
    except Exception as error:  # msgpack raises many kinds for damaged bytes
        reason = str(error) or type(error).__name__
        raise WireError(
            f"message: {len(data)} bytes are not a msgpack message ({shortened(reason)})"
        ) from None


def _msgpack() -> Any:
    return optional("msgpack", "serve", "messages to other processes")


def _packed(value: Any) -> Any:
    """What msgpack packs instead of a numpy value."""
    if not isinstance(value, (np.ndarray, np.generic)):
        raise WireError(f"message: found a {type(value).__name__}, expected numbers or arrays")
    if not _may_travel(value.dtype):
        raise WireError(
            f"message: found an array of {value.dtype}, expected booleans, numbers or text"
        )
    if isinstance(value, np.generic):
        return {b"__npgeneric__": True, b"data": value.item(), b"dtype": value.dtype.str}
    return {
        b"__ndarray__": True,
        b"data": value.tobytes(),
        b"dtype": value.dtype.str,
        b"shape": value.shape,
    }


def _may_travel(dtype: np.dtype) -> bool:
    return dtype.kind in "SU" or (dtype.kind in "biuf" and dtype.itemsize <= _LARGEST_NUMBER)


def _refuse_extension(code: int, data: bytes) -> Any:
    raise WireError(f"message: found msgpack's extension type {code}, expected none")


class _Reader:
    """Turns the maps of one message into arrays, and counts what it holds."""

    def __init__(self) -> None:
        self._left = MAX_OBJECTS

    def _count(self, number: int) -> None:
        self._left -= number + 1
        if self._left < 0:
            raise WireError(
                f"message: more than {MAX_OBJECTS} entries of lists and maps, expected arrays"
            )

    def list(self, items: list[Any]) -> list[Any]:
        self._count(len(items))
        return items

    def map(self, fields: dict[Any, Any]) -> Any:
        self._count(len(fields))
        if b"__ndarray__" in fields:
            return _array(fields)
        if b"__npgeneric__" in fields:
            return _scalar(fields)
        return fields


def _array(fields: dict[Any, Any]) -> np.ndarray:
    if fields.keys() != _ARRAY:
        raise WireError(f"message: an array has the fields {_names(fields)}, expected {_ARRAY}")
    data, shape, dtype = fields[b"data"], fields[b"shape"], _dtype(fields[b"dtype"])
    if not isinstance(shape, list) or not all(type(n) is int and n >= 0 for n in shape):
        raise WireError(f"message: an array's shape is {_shown(shape)}, expected a list of sizes")
    if len(shape) > MAX_AXES:
        raise WireError(f"message: an array has {len(shape)} axes, expected at most {MAX_AXES}")
    size = math.prod(shape) * dtype.itemsize
    if not isinstance(data, bytes) or len(data) != size:
        found = f"{len(data)} bytes" if isinstance(data, bytes) else f"a {type(data).__name__}"
        raise WireError(
            f"message: an array of {dtype.str}{_shown(shape)} has {found}, expected {size} bytes"
        )
    try:
        flat = np.frombuffer(data, dtype) if size else np.empty(math.prod(shape), dtype)
        return flat.reshape(shape).astype(dtype.newbyteorder("="))
    except ValueError as error:  # sizes that no array can have, besides a 0
        raise WireError(f"message: an array's shape is {_shown(shape)}: {error}") from None


def _scalar(fields: dict[Any, Any]) -> np.generic:
    if fields.keys() != _SCALAR:
        raise WireError(f"message: a number has the fields {_names(fields)}, expected {_SCALAR}")
    dtype = _dtype(fields[b"dtype"]).newbyteorder("=")
    value: Any = fields[b"data"]
    limits: Any = np.iinfo(dtype) if dtype.kind in "iu" else None
    if type(value) is not _PLAIN[dtype.kind] or (limits and not limits.min <= value <= limits.max):
        raise WireError(f"message: found {_shown(value)}, expected a number that {dtype} holds")
    return dtype.type(value)


def _dtype(text: Any) -> np.dtype:
    if isinstance(text, str) and _DTYPE.fullmatch(text):
        try:
            dtype = np.dtype(text)
        except TypeError:  # "<f3"
            dtype = np.dtype(object)
        if _may_travel(dtype):
            return dtype
    raise WireError(f"message: found dtype {_shown(text)}, expected booleans, numbers or text")


def _names(fields: dict[Any, Any]) -> str:
    return _shown(sorted(map(str, fields)))


def _shown(value: Any) -> str:
    return shortened(repr(value))
