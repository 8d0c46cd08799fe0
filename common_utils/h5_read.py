"""HDF5 files of other people, read without trusting what they say about themselves.

A link may lead into another file, to a pipe, or in a circle. A dataset may keep its numbers in
any path of this machine, be put together from files that are absent (the HDF5 library fills in
zeros), or claim more than memory holds. So links are followed one by one (:func:`find`), and
:func:`check` looks at a dataset before anything of it is read.

What is refused raises :class:`Refused`, a sentence that the caller completes with file and key.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import h5py
import numpy as np

from common_utils.errors import printable, shortened
from common_utils.resources import format_bytes

MOST_LINKS = 32  # followed on the way to one object
MOST_DEPTH = 16  # groups within groups
MOST_VIRTUAL = 4  # virtual datasets of virtual datasets; one of itself ends the interpreter
# so much is unpacked without asking how much of it is in the file ...
SMALL_BYTES = 64 * 2**20
# ... and beyond it at most so many times that: deflate packs zeros 1032 to 1, pictures 2 to 100
MOST_UNPACKED = 400
PACKING_BYTES = 1024  # that filters add to a chunk which they cannot make smaller, at most

SCANNED_BYTES = 16 * 2**20
HEAP_HEAD = 16  # bytes: signature, version, length
_HEAP = re.compile(rb"GCOL\x01\0\0\0(.{8})", re.DOTALL)

Item: TypeAlias = "h5py.Group | h5py.Dataset | h5py.Datatype"


class Refused(ValueError):
    """Something in an HDF5 file that is not read; the message names neither file nor key."""


def open_file(path: str | os.PathLike[str]) -> h5py.File:
    """``path`` for reading. The file is read through a descriptor (see :func:`descriptor`).

    Raises OSError where it is no HDF5 file, and where reading it would never end.
    """
    file = h5py.File(path, "r", driver="sec2")
    try:
        _check_heaps(file)
    except BaseException:
        file.close()
        raise
    return file


def _check_heaps(file: h5py.File) -> None:
    """Raise OSError for a damaged heap of texts: the library would go round and round in it.

    Heaps begin with a signature. They are looked for where they are mostly written, at both ends.
    """
    if file.id.get_create_plist().get_sizes() != (8, 8):
        return
    handle = descriptor(file)
    size = os.fstat(handle).st_size
    for begin in {0, max(0, size - SCANNED_BYTES)}:
        data = os.pread(handle, SCANNED_BYTES, begin)
        for found in _HEAP.finditer(data):
            place, length = begin + found.start(), int.from_bytes(found[1], "little")
            if place + length > size:
                continue  # the library itself reports that the file is too short
            if not _ends(os.pread(handle, length, place)[HEAP_HEAD:]):
                raise OSError(f"the heap of strings at byte {place} is damaged")


def _ends(objects: bytes) -> bool:
    """Whether a heap's objects, one after another, lead to its end and not beyond."""
    at, head = 0, 16  # bytes: number, references, nothing, size
    while at + head <= len(objects):
        free = objects[at : at + 2] == b"\0\0"
        size = int.from_bytes(objects[at + 8 : at + head], "little")
        at += size if free else head + (size + 7) // 8 * 8
        if free and not size:
            return False
    return at <= len(objects)


def descriptor(item: h5py.Group | h5py.Dataset) -> int:
    """The file descriptor through which HDF5 itself reads the file that ``item`` lies in."""
    return int(item.file.id.get_vfd_handle())


def file_number(item: h5py.Group | h5py.Dataset) -> int:
    """A number that items have in common while they lie in the same open file."""
    return int(h5py.h5o.get_info(item.id).fileno)


# ---------------------------------------------------------------- links


def find(group: h5py.Group, key: str) -> Item | None:
    """What lies at ``key`` ("a/b/c") in ``group``, through links of any kind; None if nothing.

    Another file stays open as long as what was found in it. Raises Refused for links that lead
    to no file, or around in circles.
    """
    return _find(group, key, iter(range(MOST_LINKS)))


def _find(group: h5py.Group, key: str, links: Iterator[int]) -> Item | None:
    here: Item | None = group
    for part in key.split("/"):
        if not isinstance(here, h5py.Group):
            return None
        if part not in ("", "."):
            here = _step(here, part, links)
    return here


def _step(group: h5py.Group, name: str, links: Iterator[int]) -> Item | None:
    # the library's own way would open whatever a link names, and wait forever for a pipe
    access, raw = group.id.links, name.encode("utf-8", "surrogateescape")
    if not access.exists(raw):
        return None
    kind = access.get_info(raw).type
    if kind == h5py.h5l.TYPE_HARD:
        return group[name]
    if next(links, None) is None:
        raise Refused(f"'{name}' is one of more than {MOST_LINKS} links in a row")
    if kind == h5py.h5l.TYPE_SOFT:
        target = os.fsdecode(access.get_val(raw))
        return _find(group.file["/"] if target.startswith("/") else group, target, links)
    if kind == h5py.h5l.TYPE_EXTERNAL:
        file, target = (os.fsdecode(part) for part in access.get_val(raw))
        with_file = _other_file(group, file, f"'{name}' is a link")
        return _find(with_file["/"], target, links)
    raise Refused(f"'{name}' is a link of a kind that only another program can follow")


def _other_file(item: h5py.Group | h5py.Dataset, name: str, what: str) -> h5py.File:
    """The file that ``item`` names: relative to its own file's folder, else to the present one."""
    beside = Path(item.file.filename).parent / name
    path = next((p for p in (beside, Path(name)) if p.is_file()), None)
    if path is None:
        raise Refused(f"{what} into '{name}', which is not a file (looked for as '{beside}')")
    try:
        return open_file(path)
    except OSError as error:
        raise Refused(f"{what} into '{path}', which cannot be read as HDF5: {error}") from error


def names(group: h5py.Group) -> list[str]:
    """Names in ``group``, sorted. Raises Refused for names that are not text (damaged bytes), or
    have invisible characters, which could control the terminal that shows them."""
    found = list(group)
    wrong = [name for name in found if not isinstance(name, str) or printable(name) != name]
    if wrong:
        raise Refused(
            f"holds a name that is not text, {shortened(ascii(wrong[0]))}, expected visible "
            "characters (damaged file?)"
        )
    return sorted(found)


def datasets(group: h5py.Group) -> Iterator[tuple[str, h5py.Dataset | Exception]]:
    """Every dataset below ``group`` as (key, dataset), through links; each group once.

    In place of one that cannot be reached comes the exception that says why.
    """
    yield from _datasets(group, "", {hash(group.id)}, MOST_DEPTH)


def _datasets(
    group: h5py.Group, prefix: str, seen: set[int], depth: int
) -> Iterator[tuple[str, h5py.Dataset | Exception]]:
    for name in names(group):
        key = prefix + name
        try:
            item = find(group, name)
            if item is None:
                raise Refused("is a broken link")
            if isinstance(item, h5py.Group) and depth == 0:
                raise Refused(f"lies more than {MOST_DEPTH} groups deep")
        except (OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
            yield key, error
            continue
        if isinstance(item, h5py.Dataset):
            yield key, item
        elif isinstance(item, h5py.Group) and hash(item.id) not in seen:
            seen.add(hash(item.id))
            yield from _datasets(item, f"{key}/", seen, depth - 1)


# ---------------------------------------------------------------- datasets


@dataclass(frozen=True)
class Size:
    """Bytes of a dataset: read, and in files."""

    unpacked: int
    stored: int

    def check(self, what: str) -> None:
        """Raise Refused where more is read than any compression makes of what is stored."""
        if self.unpacked > max(SMALL_BYTES, MOST_UNPACKED * self.stored):
            raise Refused(
                f"{what} would take {format_bytes(self.unpacked)}, of which "
                f"{format_bytes(self.stored)} are in the file, expected at least a "
                f"{MOST_UNPACKED}th (damaged, or made to fill memory?)"
            )


def check(dset: h5py.Dataset) -> Size:
    """The size of ``dset``, whose numbers are there to be read; else Refused, nothing being read.

    Refused are: null dataspaces, external storage, virtual datasets that lack a source or a
    part, sizes that the file cannot hold, and arrays that were not written, or not wholly.
    """
    return _check(dset, MOST_VIRTUAL)


def _check(dset: h5py.Dataset, depth: int) -> Size:
    if dset.shape is None:
        raise Refused("holds nothing (a null dataspace), expected an array")
    if dset.external:
        raise Refused(
            f"keeps its data outside HDF5 files, in '{dset.external[0][0]}': external storage is "
            "not read (h5repack writes a file without it)"
        )
    described = f"shape {list(dset.shape)} of {shortened(str(dset.dtype))}"
    unpacked = math.prod(dset.shape) * dset.dtype.itemsize
    held = os.fstat(descriptor(dset)).st_size
    if dset.is_virtual:
        size = Size(unpacked, _check_virtual(dset, depth))
    elif dset.chunks is None:
        if unpacked > held:
            raise Refused(f"{described} does not fit into the file (damaged file?)")
        size = Size(unpacked, unpacked)
    else:  # a chunk is unpacked whole, and may be larger than the array
        chunk = math.prod(dset.chunks) * dset.dtype.itemsize
        stored = int(dset.id.get_storage_size())
        _check_packing(dset, chunk, stored)
        size = Size(max(unpacked, chunk), min(stored, held))
    size.check(described)
    if not dset.is_virtual:
        _check_written(dset)
    return size


def _check_written(dset: h5py.Dataset) -> None:
    """Raise Refused where the library would make up numbers, because none were written there."""
    if not dset.size or not dset.dtype.itemsize:
        return
    if dset.chunks is None:
        written, expected = int(dset.id.get_storage_size() > 0), 1
    else:
        written = int(dset.id.get_num_chunks())
        expected = math.prod(
            -(-n // chunk) for n, chunk in zip(dset.shape, dset.chunks, strict=True)
        )
    if written < expected:
        raise Refused(
            f"has {written} of {expected} parts written; the rest would be read as "
            f"{shortened(repr(dset.fillvalue))}, expected all (was its recording interrupted?)"
        )


def _check_packing(dset: h5py.Dataset, chunk: int, stored: int) -> None:
    """Raise Refused where unpacking a chunk of ``chunk`` bytes could give very much more.

    The library unpacks whatever the packed bytes hold before it looks at the size declared.
    """
    plan = dset.id.get_create_plist()
    filters = [plan.get_filter(number)[0] for number in range(plan.get_nfilters())]
    if twice := next((code for code in filters if filters.count(code) > 1), None):
        raise Refused(f"is packed more than once by the same filter ({twice}), made to fill memory")
    most = int(dset.id.get_num_chunks()) * (chunk + chunk // 100 + PACKING_BYTES)
    if stored > most:
        raise Refused(
            f"stores {format_bytes(stored)}, but its chunks hold at most {format_bytes(most)} "
            "unpacked (damaged, or made to fill memory?)"
        )


def _check_virtual(dset: h5py.Dataset, depth: int) -> int:
    """Bytes stored in the sources of a virtual dataset, which are there and fill it exactly."""
    if depth == 0:
        raise Refused(f"is a virtual dataset of virtual datasets, more than {MOST_VIRTUAL} deep")
    for name in ("HDF5_VDS_PREFIX", "HDF5_EXT_PREFIX"):
        if os.environ.get(name):  # then the library reads other files than those checked here
            raise Refused(f"is a virtual dataset, not read while {name} is set")
    lows, highs, stored = [], [], {}
    for part in dset.virtual_sources():
        low, high, count = _block(part.vspace)
        lows.append(low)
        highs.append(high)
        source = _virtual_source(dset, part.file_name, part.dset_name)
        _check_piece(source, part, count)
        stored[hash(source.id)] = _check(source, depth - 1).stored
    _check_filled(dset, np.array(lows), np.array(highs))
    return sum(stored.values())


def _block(space: h5py.h5s.SpaceID) -> tuple[tuple[int, ...], tuple[int, ...], int]:
    """First and last corner of a selection that is a solid block, and its number of points."""
    try:
        low, high = space.get_select_bounds()
        count = int(space.get_select_npoints())
    except (RuntimeError, ValueError):  # it has no end
        count = -1
    if count != -1 and math.prod(b - a + 1 for a, b in zip(low, high, strict=True)) == count:
        return low, high, count
    raise Refused("is a virtual dataset whose pieces are not solid blocks of a fixed size")


def _virtual_source(dset: h5py.Dataset, file: str, name: str) -> h5py.Dataset:
    if "%" in file + name:
        raise Refused(f"is a virtual dataset of files named by a pattern, '{file}'")
    what = "is a virtual dataset with a source"
    source = find((dset.file if file == "." else _other_file(dset, file, what))["/"], name)
    if not isinstance(source, h5py.Dataset):
        raise Refused(f"{what} '{name}' in '{file}', which is not a dataset there")
    return source


def _check_piece(source: h5py.Dataset, part: h5py.h5d.VDSmap, count: int) -> None:
    """Raise Refused unless ``source`` has all the ``count`` points that ``part`` takes of it."""
    shape = source.shape or ()
    if part.src_space.get_select_type() == h5py.h5s.SEL_ALL:
        fits = math.prod(shape) == count and bool(shape)
    else:
        _, high, points = _block(part.src_space)
        fits = points == count and len(high) == len(shape)
        fits = fits and all(last < n for last, n in zip(high, shape, strict=True))
    if not fits:
        raise Refused(
            f"is a virtual dataset, whose source '{part.dset_name}' in '{part.file_name}' has "
            f"shape {list(shape)}, which does not fit the part that is used"
        )


def _check_filled(dset: h5py.Dataset, lows: np.ndarray, highs: np.ndarray) -> None:
    """Raise Refused unless the blocks fill the dataset, each place once."""
    filled = sum(math.prod((b - a + 1).tolist()) for a, b in zip(lows, highs, strict=True))
    apart = all(  # two blocks are apart where one begins behind the other's end on some axis
        ((lows[:i] > highs[i]) | (highs[:i] < lows[i])).any(axis=1).all() for i in range(len(lows))
    )
    if filled != math.prod(dset.shape) or not apart:
        raise Refused("is a virtual dataset whose sources do not fill it; the rest would be zeros")


def raw_offset(dset: h5py.Dataset, file: h5py.File) -> int | None:
    """Where ``dset`` begins in ``file``, byte for byte as in memory; None where it does not so lie.

    It does when it lies in that file itself (not one linked to), in one piece, not filtered, in
    this machine's format.
    """
    if file_number(dset) != file_number(file) or dset.is_virtual or dset.external:
        return None
    plan = dset.id.get_create_plist()
    if plan.get_layout() != h5py.h5d.CONTIGUOUS or plan.get_nfilters():
        return None
    # as numpy describes it, the type may be the same and its bits lie elsewhere
    if not dset.id.get_type().equal(h5py.h5t.py_create(dset.dtype)):
        return None
    offset = dset.id.get_offset()
    return None if offset is None else int(offset)
