"""The arrays of demonstrations in a format: what the class of a format defines, checked reading.

What the arrays mean is in ``bc.demos``.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar
from zipfile import BadZipFile

import numpy as np

from bc.pictures import PictureLayout
from common_utils import h5_read
from common_utils.env_args import shown
from common_utils.errors import UserError
from common_utils.resources import available_memory, format_bytes

Opened = TypeVar("Opened", bound="DemoArrays")
# attribute of a demonstration in formats without lists: JSON, the filter keys that list it
FILTER_KEYS = "filter_keys"
# what h5py, zarr, zipfile and PIL were seen to raise on files with damaged bytes
FAULTS = (
    OSError, LookupError, RuntimeError, ValueError, TypeError, MemoryError, SystemError,
    ArithmeticError, AttributeError, SyntaxError, BadZipFile,
)  # fmt: skip


def few(names: Sequence[str], most: int = 4) -> str:
    """The names, or the first of them and how many there are."""
    more = f", ... ({len(names)} in all)" if len(names) > most else ""
    return ", ".join(names[:most]) + more


class DatasetError(UserError):
    """A demonstration file is missing, damaged, or not what the configuration asks for."""


@dataclass(frozen=True)
class Stored:
    """An array as it is stored: ``shape`` with the steps first, ``dtype``, ``bytes`` on disk."""

    shape: tuple[int, ...]
    dtype: np.dtype
    bytes: int

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes in memory."""
        return int(np.prod(self.shape, dtype=object)) * self.dtype.itemsize


class DemoArrays(ABC):
    """Open demonstrations as arrays with keys.

    Attributes: ``path``, ``names`` (of demonstrations, in reading order), ``notes`` (remarks for
    the user), ``env_args`` (dict: robomimic's description of the environment; empty if there is
    none), ``fps`` (control steps per second, None if not recorded).
    """

    path: Path
    names: list[str]
    notes: list[str]
    env_args: dict[str, Any]
    fps: float | None = None

    # ------------------------------------------------------------ what a format defines

    @abstractmethod
    def close(self) -> None:
        """Close all files; safe to call twice."""

    @abstractmethod
    def all_keys(self, name: str) -> list[str]:
        """The keys of a demonstration's arrays, sorted."""

    @abstractmethod
    def stored(self, name: str, key: str) -> Stored:
        """What lies at ``key``; DatasetError if there is nothing, or it cannot be read."""

    @abstractmethod
    def array(self, name: str, key: str) -> np.ndarray:
        """The array at ``key`` as it is stored, of any kind and shape (no pictures)."""

    @abstractmethod
    def attribute(self, name: str, key: str, attr: str) -> Any:
        """An attribute of what lies at ``key`` ("" the demonstration itself); None without it."""

    @abstractmethod
    def layout(self, name: str, camera: str) -> PictureLayout:
        """How a camera's pictures are stored; DatasetError if that cannot be decided."""

    @abstractmethod
    def images(self, name: str, camera: str, rows: np.ndarray | None = None) -> np.ndarray:
        """uint8 [N, 3, H, W], the newest frame of each step (of all); rows ascending, unique."""

    def has(self, name: str, key: str) -> bool:
        """Whether there is anything at ``key``."""
        return key in self.all_keys(name)

    def facts(self) -> dict[str, Any]:
        """What else the format says of the dataset, for people: name -> value."""
        return {}

    def filter_keys(self) -> list[str]:
        """Names of its lists of demonstrations (robomimic's filter keys), sorted."""
        return sorted({key for keys in self._lists.values() for key in keys})

    def listed(self, key: str) -> list[str]:
        """The names in one of these lists, as they are stored."""
        return [name for name, keys in self._lists.items() if key in keys]

    @cached_property
    def _lists(self) -> dict[str, list[str]]:
        """Name -> the filter keys that list it, which tools.convert_dataset keeps with it."""
        return {name: self._filter_keys_of(name) for name in self.names}

    def _filter_keys_of(self, name: str) -> list[str]:
        text = self.text(name, FILTER_KEYS)
        try:
            found = json.loads(text) if text else []
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, list) or not all(isinstance(key, str) for key in found):
            raise self.error(
                name, FILTER_KEYS, f"found {shown(text)}, expected names of filter keys as JSON"
            )
        return found

    # ------------------------------------------------------------ what they have in common

    def filtered(self, key: str) -> list[str]:
        """The demonstrations that filter key ``key`` lists, in reading order.

        Raises DatasetError if there is no such list, or if it names what is no demonstration.
        """
        if key not in (keys := self.filter_keys()):
            expected = f"one of {', '.join(keys)}" if keys else "'': it has no filter keys"
            raise self.error(
                None, "mask", f"dataset.filter_key: found '{key}', expected {expected}"
            )
        place, listed = f"mask/{key}", self.listed(key)
        if not listed:
            raise self.error(None, place, "found an empty list, expected names of demonstrations")
        if absent := sorted(set(listed) - set(self.names)):
            raise self.error(
                None, place, f"names {few(absent)}, not in the file, which has {few(self.names)}"
            )
        if len(set(listed)) < len(listed):
            twice = next(name for name in listed if listed.count(name) > 1)
            raise self.error(None, place, f"names {twice} more than once")
        chosen = set(listed)
        return [name for name in self.names if name in chosen]

    @contextmanager
    def _guard(self, name: str | None, key: str) -> Iterator[None]:
        """Turn what the format's libraries raise on damaged bytes into a DatasetError."""
        try:
            yield
        except DatasetError:
            raise
        except h5_read.Refused as error:
            raise self.error(name, key, str(error)) from error
        except FAULTS as error:
            said = " ".join(str(error).split()) or type(error).__name__
            raise self.error(name, key, f"cannot be read (damaged file?): {said}") from error

    def __enter__(self: Opened) -> Opened:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def error(self, name: str | None, key: str, what: str) -> DatasetError:
        """A DatasetError that says where the fault is."""
        where = f"'{self.path}'" + (f", {name}" if name else "") + f", '{key}'"
        return DatasetError(f"{where}: {what}")

    def obs_keys(self, name: str) -> list[str]:
        """The names of a demonstration's observations, sorted; none in raw recordings."""
        found = (k for k in self.all_keys(name) if k.startswith("obs/"))
        return sorted(k.removeprefix("obs/") for k in found)

    def text(self, name: str, attr: str) -> str:
        """A demonstration's attribute that is text; "" without it."""
        value = self.attribute(name, "", attr)
        if isinstance(value, bytes):
            value = value.decode(errors="replace")
        if value is not None and not isinstance(value, str):
            raise self.error(name, attr, f"expected an attribute that is text, got {shown(value)}")
        return value or ""

    def stack(self, name: str, key: str) -> int | None:
        """The attribute "stack" of a dataset: how many steps each of its rows holds."""
        stack = self.attribute(name, key, "stack")
        if stack is None:
            return None
        if not isinstance(stack, (int, np.integer)) or stack < 1:
            raise self.error(
                name, key, f"attribute 'stack' is {shown(stack)}, expected a whole number of at "
                "least 1"
            )  # fmt: skip
        return int(stack)

    def numbers(self, name: str, key: str, ndim: int, kinds: str = "fiu") -> np.ndarray:
        """Finite numbers with ``ndim`` axes, float64, e.g. of ``states``.

        kinds: numpy's letters of the dtypes that count as numbers.
        """
        found = self.stored(name, key)
        if found.ndim != ndim:
            raise self.error(name, key, f"expected {ndim} axes, got shape {list(found.shape)}")
        if found.dtype.kind not in kinds:
            raise self.error(name, key, f"expected numbers, got {found.dtype}")
        # as stored, as float64, as float32
        self.room(name, key, found.nbytes // found.dtype.itemsize * (found.dtype.itemsize + 8 + 4))
        return self._finite(name, key, self.array(name, key).astype(np.float64))

    def _float(self, name: str, key: str, ndim: int, kinds: str = "fiu") -> np.ndarray:
        with np.errstate(all="ignore"):  # what overflows float32 is reported as infinity
            array = self.numbers(name, key, ndim, kinds).astype(np.float32)
        return self._finite(name, key, array)

    def _finite(self, name: str, key: str, array: np.ndarray) -> np.ndarray:
        if not np.isfinite(array).all():
            row = int(np.argwhere(~np.isfinite(array))[0][0])
            raise self.error(
                name, key, f"holds NaN or infinity, first at step {row}, expected finite numbers"
            )
        return array

    def room(self, name: str, key: str, size: int) -> None:
        """Raise DatasetError where ``size`` bytes do not fit into memory, nothing being taken."""
        self._since_room += size
        if self._since_room < h5_read.SMALL_BYTES:  # asking takes time
            return
        self._since_room, free = 0, available_memory()
        if size > free:
            raise self.error(
                name, key, f"takes {format_bytes(size)} of memory, {format_bytes(free)} are free"
            )

    _since_room = 0
