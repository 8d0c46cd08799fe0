"""A connection of two processes on one machine, whose arrays cross in memory that both have."""

from __future__ import annotations

import mmap
import os
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import numpy as np

ALIGNED = 64  # bytes: where arrays begin
PAGE = 1 << 16  # the memory grows in these
NUMBERS = "biuf"  # kinds of arrays that cross in memory; others are pickled with the message


class _Place(NamedTuple):
    """Where in the memory an array is; it stands for the array in the message."""

    start: int
    dtype: str
    shape: tuple[int, ...]

    @property
    def end(self) -> int:
        return self.start + int(np.prod(self.shape, dtype=np.int64)) * np.dtype(self.dtype).itemsize


class SharedConnection(Connection):
    """Sends and receives messages. Numeric arrays in their tuples, lists and dicts are copied to
    shared memory, where the other side copies them from; the small rest is pickled.

    One memory serves both directions, so the two sides take turns: whoever sends again must have
    received an answer. It grows to the largest message.

    Args:
        handle: file descriptor of a socket.
        memory: that of the memory (``os.memfd_create``). Both belong to the connection from now on.
    """

    def __init__(self, handle: int, memory: int) -> None:
        super().__init__(handle)
        self._memory = memory
        self._mapped: mmap.mmap | None = None

    def send(self, obj: Any) -> None:
        """Send a message; OSError if the other side is gone."""
        arrays: list[tuple[_Place, np.ndarray]] = []
        rest = _without_arrays(obj, arrays)
        if arrays:
            self._reach(arrays[-1][0].end)
        for place, array in arrays:
            self._at(place)[...] = array
        super().send(rest)

    def recv(self) -> Any:
        """The next message, with arrays of its own; EOFError or OSError if there is none."""
        return self._with_arrays(super().recv())

    def close(self) -> None:
        """End the connection; safe to call twice."""
        super().close()
        if self._memory >= 0:
            os.close(self._memory)
        self._memory, self._mapped = -1, None

    def _with_arrays(self, value: Any) -> Any:
        if isinstance(value, _Place):
            self._reach(value.end)
            return self._at(value).copy()
        if type(value) is dict:
            return {k: self._with_arrays(v) for k, v in value.items()}
        if type(value) in (list, tuple):
            return type(value)(self._with_arrays(v) for v in value)
        return value

    def _at(self, place: _Place) -> np.ndarray:
        assert self._mapped is not None  # _reach has mapped it
        return np.ndarray(place.shape, place.dtype, self._mapped, place.start)

    def _reach(self, end: int) -> None:
        """Map at least ``end`` bytes of the memory, which may have to grow."""
        if self._mapped is not None and len(self._mapped) >= end:
            return
        size = -(-max(end, 1) // PAGE) * PAGE
        if os.fstat(self._memory).st_size < size:
            os.ftruncate(self._memory, size)
        self._mapped = mmap.mmap(self._memory, size)


def _without_arrays(value: Any, arrays: list[tuple[_Place, np.ndarray]]) -> Any:
    """``value`` with places instead of its arrays, which are appended to ``arrays``."""
    if isinstance(value, np.ndarray) and value.dtype.kind in NUMBERS:
        start = -(-arrays[-1][0].end // ALIGNED) * ALIGNED if arrays else 0
        place = _Place(start, value.dtype.str, value.shape)
        arrays.append((place, value))
        return place
    if type(value) is dict:
        return {k: _without_arrays(v, arrays) for k, v in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_without_arrays(v, arrays) for v in value)
    return value
