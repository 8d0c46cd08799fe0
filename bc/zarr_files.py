"""The files of a Zarr group, read without zarr: what it will find is checked before it looks."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from common_utils import h5_read
from common_utils.env_args import shown

ARRAY = (".zarray", "zarr.json")  # descriptions of an array, of formats 2 and 3
MOST_JSON = 2**20


class ZarrFiles:
    """The files of a Zarr group, without zarr: descriptions and sizes."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._zip = None if path.is_dir() else zipfile.ZipFile(path)
        self._known: dict[str, tuple[int, int]] = {}

    def close(self) -> None:
        """Close the zip file."""
        if self._zip is not None:
            self._zip.close()

    def _read(self, place: str) -> bytes | None:
        if self._zip is not None:
            if place not in self._zip.namelist():
                return None
            if self._zip.getinfo(place).file_size > MOST_JSON:
                raise h5_read.Refused(f"'{place}' is larger than {MOST_JSON:,} bytes")
            return self._zip.read(place)
        file = self._path / place
        if not file.is_file():
            return None
        if file.stat().st_size > MOST_JSON:
            raise h5_read.Refused(f"'{place}' is larger than {MOST_JSON:,} bytes")
        return file.read_bytes()

    def arrays(self, group: str) -> list[str]:
        """Names of the arrays in a group, sorted."""
        if self._zip is not None:
            inside = (n.removeprefix(f"{group}/").split("/") for n in self._zip.namelist())
            return sorted({parts[0] for parts in inside if len(parts) == 2 and parts[1] in ARRAY})
        found = (self._path / group).iterdir() if (self._path / group).is_dir() else ()
        return sorted(p.name for p in found if any((p / mark).is_file() for mark in ARRAY))

    def meta(self, place: str) -> dict[str, Any] | None:
        """The description of an array, of either format; None if there is no array."""
        found: dict[str, Any] = {}
        for name in ARRAY:
            if (text := self._read(f"{place}/{name}")) is not None:
                part = json.loads(text)
                if not isinstance(part, dict):
                    raise h5_read.Refused(f"'{name}' is {shown(part)}, expected an object")
                if found:
                    raise h5_read.Refused("is described twice, in Zarr format 2 and 3")
                found = part
        return found or None

    def stored(self, place: str) -> tuple[int, int]:
        """Bytes and number of an array's chunks. Refused for what is no regular file."""
        if place not in self._known:
            sizes = list(self._chunks(place))
            self._known[place] = (sum(sizes), len(sizes))
        return self._known[place]

    def _chunks(self, place: str) -> Iterator[int]:
        if self._zip is not None:
            for info in self._zip.infolist():
                name = info.filename
                if name.startswith(f"{place}/") and not _is_meta(name) and not info.is_dir():
                    yield info.compress_size
            return
        for file in (self._path / place).rglob("*"):
            if file.is_dir() or _is_meta(file.name):
                continue
            if not file.is_file():
                raise h5_read.Refused(f"'{file.name}' is not a regular file")
            yield file.stat().st_size


def _is_meta(name: str) -> bool:
    return name.rpartition("/")[2] in (".zarray", ".zattrs", "zarr.json", ".zgroup", ".zmetadata")


def codecs(meta: Any) -> set[str]:
    """Names of all codecs in an array's description, of either format, however nested."""
    found: set[str] = set()
    waiting: list[Any] = [meta.get(k) for k in ("compressor", "filters", "codecs")]
    while waiting:
        item = waiting.pop()
        if isinstance(item, list):
            waiting.extend(item)
        elif isinstance(item, dict):
            name = item.get("id", item.get("name"))
            if name is not None:
                found.add(str(name).removeprefix("numcodecs."))
            inner = item.get("configuration") or {}
            if isinstance(inner, dict):
                waiting += [inner.get("codecs"), inner.get("index_codecs")]
    return found
