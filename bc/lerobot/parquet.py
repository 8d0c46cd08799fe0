"""Columns of parquet files that cannot be trusted, as numpy arrays or python values."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from bc.demos import DatasetError
from common_utils import h5_read
from common_utils.extras import how_to_install


def require(package: str) -> Any:
    """The optional package; DatasetError with the command that installs it."""
    import importlib

    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        raise DatasetError(
            f"LeRobot datasets need the package '{package.partition('.')[0]}'; to install it: "
            f"{how_to_install('data')}"
        ) from error


@contextmanager
def _guard(root: Path, path: Path) -> Iterator[None]:
    """Turn what pyarrow raises on damaged bytes into a DatasetError."""
    arrow = require("pyarrow")
    try:
        yield
    except (arrow.ArrowException, OSError, ValueError, KeyError, TypeError, MemoryError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise DatasetError(
            f"'{root}', '{path.relative_to(root)}': cannot be read as parquet (damaged, cut off, "
            f"or still being written?): {first}"
        ) from error


def _fault(root: Path, path: Path, what: str) -> DatasetError:
    return DatasetError(f"'{root}', '{path.relative_to(root)}': {what}")


class ParquetColumns:
    """One file; ``rows`` is its number of rows, ``names`` are its columns."""

    def __init__(self, root: Path, path: Path) -> None:
        self.root, self.path = root, path
        with _guard(root, path):
            self._file = require("pyarrow.parquet").ParquetFile(path)
            self.rows = int(self._file.metadata.num_rows)
            self.names = list(self._file.schema_arrow.names)
            groups = [self._file.metadata.row_group(i) for i in range(self._file.num_row_groups)]
            self._ends = np.cumsum([g.num_rows for g in groups])
        self._stored: dict[str, int] = {}

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _read(self, name: str, groups: Sequence[int] | None = None) -> Any:
        if name not in self.names:
            raise _fault(
                self.root, self.path, f"no column '{name}'; it has {', '.join(self.names)}"
            )
        with _guard(self.root, self.path):
            if groups is None:
                found = self._file.read(columns=[name])
            else:
                found = self._file.read_row_groups(list(groups), columns=[name])
            return found.column(0).combine_chunks()

    def numbers(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        """[rows, *shape]: a column of lists (in lists ...) of numbers, none of them missing."""
        size = h5_read.Size(self.rows * math.prod(shape) * 8, self.path.stat().st_size)
        try:
            size.check(f"column '{name}'")
        except h5_read.Refused as error:
            raise _fault(self.root, self.path, str(error)) from error
        column = self._read(name)
        with _guard(self.root, self.path):
            return self._unpacked(name, column, shape)

    def _unpacked(self, name: str, column: Any, shape: tuple[int, ...]) -> np.ndarray:
        types, compute = require("pyarrow.types"), require("pyarrow.compute")
        # a step of one number is stored without a list around it
        for length in shape if shape != (1,) or _is_list(types, column.type) else ():
            if not _is_list(types, column.type):
                raise _fault(self.root, self.path, f"column '{name}' is {column.type}, expected "
                             f"{list(shape)} numbers per step")  # fmt: skip
            self._no_gaps(name, column)
            sizes = compute.list_value_length(column)
            if len(sizes) and compute.min_max(sizes).as_py() != {"min": length, "max": length}:
                found = compute.min_max(sizes).as_py()
                raise _fault(self.root, self.path, f"column '{name}' has steps of {found['min']} "
                             f"to {found['max']} numbers, expected {length}")  # fmt: skip
            column = column.flatten()
        self._no_gaps(name, column)
        kind = column.type
        if not (types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind)):
            raise _fault(self.root, self.path, f"column '{name}' is {kind}, expected numbers")
        return column.to_numpy(zero_copy_only=False).reshape(-1, *shape)

    def _no_gaps(self, name: str, column: Any) -> None:
        if column.null_count:
            raise _fault(self.root, self.path, f"column '{name}' lacks {column.null_count} values")

    def pictures(self, name: str, first: int, last: int) -> list[bytes]:
        """The encoded pictures of rows ``first`` to ``last`` (exclusive)."""
        groups = range(
            int(np.searchsorted(self._ends, first, side="right")),
            int(np.searchsorted(self._ends, last - 1, side="right")) + 1,
        )
        begin = first - (int(self._ends[groups[0] - 1]) if groups[0] else 0)
        column = self._read(name, groups)
        with _guard(self.root, self.path):
            found = column.slice(begin, last - first).to_pylist()
        if not all(isinstance(x, dict) and isinstance(x.get("bytes"), bytes) for x in found):
            raise _fault(
                self.root, self.path, f"column '{name}' has pictures that are not in the file "
                "itself, expected their bytes"
            )  # fmt: skip
        return [x["bytes"] for x in found]

    def stored(self, name: str) -> int:
        """Compressed bytes of a column (of all, when asked for the first time)."""
        meta = self._file.metadata
        if not self._stored:
            with _guard(self.root, self.path):
                for number in range(meta.num_row_groups):
                    group = meta.row_group(number)
                    for column in map(group.column, range(group.num_columns)):
                        own = self._name_of(column.path_in_schema)
                        size = self._stored.get(own, 0) + column.total_compressed_size
                        self._stored[own] = size
        return self._stored.get(name, 0)

    def _name_of(self, path: str) -> str:
        """The column that a part of it belongs to (``wrist.bytes``; names may have dots too)."""
        while path and path not in self.names:
            path = path.rpartition(".")[0]
        return path


def _is_list(types: Any, kind: Any) -> bool:
    return bool(types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind))


def rows(root: Path, path: Path, columns: Sequence[str]) -> list[dict[str, Any]]:
    """The rows of a small table as dicts of python values; all ``columns`` must be there."""
    file = ParquetColumns(root, path)
    try:
        for name in columns:
            if name not in file.names:
                raise _fault(root, path, f"no column '{name}'")
        try:
            h5_read.Size(file.rows * 8 * len(columns), path.stat().st_size).check("it")
        except h5_read.Refused as error:
            raise _fault(root, path, str(error)) from error
        with _guard(root, path):
            found: list[dict[str, Any]] = file._file.read(columns=list(columns)).to_pylist()
        return found
    finally:
        file.close()
