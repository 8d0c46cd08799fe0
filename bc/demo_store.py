"""HDF5 files of demonstrations: opening them, and reading what lies in them, of any meaning.

Every fault is a :class:`DatasetError` that names the file, the demonstration and the key.
A damaged HDF5 file makes h5py raise almost anything, so every access to it is guarded; what may
lead out of the file, or be larger than it looks, goes through ``common_utils.h5_read``.
"""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from bc.demo_arrays import few
from bc.demos import DatasetError, Demos, Stored
from common_utils import h5_read
from common_utils.made_by import how_to_make

MOST_NAMES = 2**16  # in a filter key


def natural(name: str) -> list[tuple[int, int, str]]:
    """Numbers by their size, as lengths and digits: python refuses to read the longest."""
    parts = enumerate(re.split(r"([0-9]+)", name))
    return [(1, len(n := p.lstrip("0")), n) if i % 2 else (0, 0, p) for i, p in parts]


class DemoStore(Demos):
    """An open HDF5 file with a group for each demonstration; reads single arrays, checked.

    Attributes: ``names`` (demonstrations: ``demo_*``, then those of other names, each naturally
    sorted), ``notes`` (sentences on what of ``data`` has other names).
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not str(path):
            raise DatasetError("dataset.path is empty: give an HDF5 file of demonstrations")
        if not self.path.is_file():
            raise DatasetError(
                f"demonstration file '{path}' does not exist; to make it: {how_to_make(path)}"
            )
        try:
            self._file = h5_read.open_file(self.path)
        except PermissionError as err:
            raise DatasetError(f"'{path}' may not be read: {os.strerror(errno.EACCES)}") from err
        except OSError as err:
            raise DatasetError(
                f"'{path}' cannot be read as HDF5 (damaged, cut off, or still being written?): "
                f"{err}; to make it again: {how_to_make(path)}"
            ) from err
        try:
            with self._guard(None, "data"):
                data = h5_read.find(self._file, "data")
                if not isinstance(data, h5py.Group):
                    raise self.error(None, "data", "no group 'data'; expected the robomimic layout")
                self._data = data
                self.names, self.notes = self._demonstrations()
        except BaseException:
            self._file.close()
            raise
        self._groups: dict[str, h5py.Group] = {}
        self._last: tuple[str | None, str, h5_read.Item | None] | None = None  # what was found
        self._checked: set[tuple[str, str]] = set()
        self._stored: set[int] = set()  # the datasets among them; a file may give one many names
        self._size = h5_read.Size(0, 0)  # of all that was checked

    def close(self) -> None:
        """Close the file; safe to call twice."""
        self._last = None
        self._file.close()

    def _demonstrations(self) -> tuple[list[str], list[str]]:
        """Names in reading order, and notes on every entry that is not called ``demo*``."""
        found = h5_read.names(self._data)
        named = [n for n in found if n.startswith("demo")]
        others: dict[bool, list[str]] = {True: [], False: []}
        for name in sorted(set(found) - set(named), key=natural):
            others[self._has_actions(name)].append(name)
        notes = []
        if others[True] and named:
            notes.append(
                f"{len(others[True])} demonstrations are not called demo_*: {few(others[True])}; "
                f"they are read after the {len(named)} that are"
            )
        if others[False]:
            notes.append(f"no demonstration, since without 'actions': {few(others[False])}")
        if not named and not others[True]:
            raise self.error(
                None, "data", "no demonstration in it, which is a group 'demo_*' or any other with "
                f"'actions'; it holds {few(others[False]) or 'nothing'}"
            )  # fmt: skip
        return sorted(named, key=natural) + others[True], notes

    def _has_actions(self, name: str) -> bool:
        try:
            return h5_read.find(self._data, f"{name}/actions") is not None
        except h5_read.Refused:
            return False

    def filter_keys(self) -> list[str]:
        """Names of the lists of demonstrations in ``mask`` (robomimic's filter keys), sorted."""
        masks = self.find(None, "mask")
        if masks is None:
            return []
        if not isinstance(masks, h5py.Group):
            raise self.error(None, "mask", "found a dataset, expected a group of filter keys")
        with self._guard(None, "mask"):
            return h5_read.names(masks)

    def listed(self, key: str) -> list[str]:
        """The names in filter key ``key``: robomimic's texts of fixed length, or of any length."""
        place = f"mask/{key}"
        found = self.find(None, place)
        with self._guard(None, place):
            if not isinstance(found, h5py.Dataset):
                raise h5_read.Refused("found a group, expected a list of demonstrations")
            h5_read.check(found)
            if found.ndim != 1 or found.size > MOST_NAMES or found.dtype.kind not in "SO":
                raise h5_read.Refused(
                    f"found {found.dtype} of shape {list(found.shape)}, expected a list of at most "
                    f"{MOST_NAMES:,} names"
                )
            listed = found[()]
        return [n.decode(errors="replace") if isinstance(n, bytes) else str(n) for n in listed]

    @property
    def data(self) -> h5py.Group:
        """The group of all demonstrations."""
        return self._data

    @property
    def root(self) -> h5py.File:
        """The file itself, for what this class does not read."""
        return self._file

    def group(self, name: str) -> h5py.Group:
        """One demonstration's group."""
        if name in self._groups:
            return self._groups[name]
        with self._guard(name, "actions"):
            found = h5_read.find(self._data, name)
            if not isinstance(found, h5py.Group):
                raise self.error(None, name, "missing or not a group; expected a demonstration")
            if h5_read.file_number(found) == h5_read.file_number(self._file):
                self._groups[name] = found  # another file would stay open with its group
        return found

    def find(self, name: str | None, key: str) -> h5_read.Item | None:
        """What lies at ``key`` of a demonstration (of the file, without a name), or None."""
        if self._last is not None and self._last[:2] == (name, key):
            return self._last[2]  # whether it is there, its shape and its numbers are asked for
        group = self._file if name is None else self.group(name)
        with self._guard(name, key):
            found = h5_read.find(group, key)
        self._last = (name, key, found)
        return found

    def has(self, name: str, key: str) -> bool:
        """Whether there is anything at ``key``."""
        return self.find(name, key) is not None

    def all_keys(self, name: str) -> list[str]:
        """The keys of a demonstration's datasets, sorted; also of those that cannot be read."""
        with self._guard(name, "datasets"):
            return sorted(key for key, _ in h5_read.datasets(self.group(name)))

    def obs_keys(self, name: str) -> list[str]:
        """The names of a demonstration's observations, sorted; none in raw recordings."""
        found = self.find(name, "obs")
        with self._guard(name, "obs"):
            return h5_read.names(found) if isinstance(found, h5py.Group) else []

    def check_all(self, name: str) -> None:
        """Raise DatasetError unless all datasets of a demonstration can be read."""
        with self._guard(name, "datasets"):
            items = list(h5_read.datasets(self.group(name)))
        for key, found in items:
            with self._guard(name, key):
                if isinstance(found, Exception):
                    raise found
                self.dataset(name, key)

    def attribute(self, name: str | None, key: str, attr: str) -> Any:
        """An attribute of what lies at ``key`` ("" the demonstration itself); None without it."""
        item = self.find(name, key)
        with self._guard(name, attr):
            return None if item is None else item.attrs.get(attr)

    def dataset(self, name: str, key: str) -> h5py.Dataset:
        """One dataset, whose storage and size are checked, and nothing else."""
        found = self.find(name, key)
        if not isinstance(found, h5py.Dataset):
            have = ", ".join(self.obs_keys(name)) or "no observations"
            raise self.error(name, key, f"missing; the demonstration's 'obs' holds: {have}")
        if (name, key) not in self._checked:
            with self._guard(name, key):
                self._check_size(found)
            self._checked.add((name, key))
        return found

    def stored(self, name: str, key: str) -> Stored:
        """What lies at ``key``, which must be a dataset."""
        dset = self.dataset(name, key)
        with self._guard(name, key):
            return Stored(tuple(dset.shape), dset.dtype, int(dset.id.get_storage_size()))

    def array(self, name: str, key: str) -> np.ndarray:
        """One dataset as it is stored, of any kind and shape."""
        dset = self.dataset(name, key)
        self.room(name, key, dset.size * dset.dtype.itemsize)
        return self._read(dset, name, key)

    def _check_size(self, dset: h5py.Dataset) -> None:
        size, known = h5_read.check(dset), hash(dset.id) in self._stored
        stored = self._size.stored + (0 if known else size.stored)
        self._size = h5_read.Size(self._size.unpacked + size.unpacked, stored)
        self._size.check("together with the datasets before it this one")
        self._stored.add(hash(dset.id))

    def _read(self, dset: h5py.Dataset, name: str, key: str, rows: Any = ()) -> np.ndarray:
        with self._guard(name, key):
            return dset[rows]
