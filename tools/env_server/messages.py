"""Messages (msgpack with numpy arrays), and the errors of this program."""

from __future__ import annotations

import time
from typing import Any

import msgpack
import numpy as np

PROTOCOL, VERSION = "ibrl-env", 1


class ServeError(Exception):
    """Something that the user can fix; printed in one line."""


class Refused(Exception):
    """A request that is answered by an error; ``code`` says which kind."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code

    def answer(self) -> dict[str, Any]:
        """The message that says so."""
        return {"type": "error", "code": self.code, "message": str(self)}


def pack(message: Any) -> bytes:
    """Bytes of a message of maps, lists, text, numbers and numpy arrays of numbers."""
    return bytes(msgpack.packb(message, default=_packed))


def unpack(data: Any) -> dict[Any, Any]:
    """The map in some bytes; raises Refused for anything else."""
    try:
        message = msgpack.unpackb(data, object_hook=_unpacked)
    except Exception as error:  # msgpack and numpy raise many kinds
        raise Refused("request", f"found no msgpack message ({error})") from None
    if not isinstance(message, dict):
        raise Refused("request", f"found a {type(message).__name__}, expected a map")
    return message


def _packed(value: Any) -> Any:
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
        data, dtype = value.tobytes(), value.dtype.str
        return {b"__ndarray__": True, b"data": data, b"dtype": dtype, b"shape": value.shape}
    raise TypeError(f"a {type(value).__name__} cannot be sent")


def _unpacked(fields: dict[Any, Any]) -> Any:
    if b"__ndarray__" not in fields:
        return fields
    dtype = np.dtype(str(fields[b"dtype"]))
    if dtype.kind not in "biuf":
        raise ValueError(f"an array of {dtype}")
    return np.frombuffer(fields[b"data"], dtype).reshape(fields[b"shape"])


def plain(info: Any) -> dict[str, Any]:
    """The entries of an info map that are sent: flags, numbers and text."""
    simple = {}
    for key, value in dict(info or {}).items():
        if isinstance(value, np.generic):
            value = value.item()
        if isinstance(key, str) and isinstance(value, (bool, int, float, str)):
            simple[key] = value
    return simple


def say(line: str) -> None:
    """Print a line, with the time."""
    print(f"{time.strftime('%H:%M:%S')} {line}", flush=True)
