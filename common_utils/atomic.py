"""Writes files whole: a reader finds the old version or the new one, never half of one.

Every write goes to a temporary file next to the target, is forced to disk, and is
then renamed over it. A crash leaves at most a ``.tmp-*`` file behind, which
:func:`remove_leftovers` clears.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

TEMP_MARK = ".tmp-"
_FULL = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "the file size limit is reached",
}


def full_disk(error: BaseException | None) -> str:
    """ "the disk is full" (or another limit that a write reached) if ``error`` or its cause says
    so, else "". The cause is needed because torch raises a RuntimeError instead."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _FULL:
            return _FULL[error.errno]
        error = error.__cause__ or error.__context__
    return ""


def fsync_path(path: str | os.PathLike[str]) -> None:
    """Force a file or a directory to disk."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def make_folder(path: str | os.PathLike[str]) -> Path:
    """Create a folder and its missing parents, and force their entries to disk; returns it."""
    path = Path(path)
    missing = [p for p in (path, *path.parents) if not p.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for folder in reversed(missing):
        fsync_path(folder.parent)
    return path


@contextmanager
def atomic_write(path: str | os.PathLike[str], mode: str | None = None) -> Iterator[Any]:
    """Replace ``path`` with what the block writes, or leave it as it was if the block raises.

    Without ``mode`` yields a temporary ``Path`` (same suffix as the target, not yet
    created) for libraries that open files themselves (h5py, imageio); with ``mode``
    ``"w"`` or ``"wb"`` yields the opened file. Parent folders are created.

    Raises FileNotFoundError if the block did not create the temporary file, OSError if ``path``
    is a folder, a pipe or a device, or is in /dev: renaming would replace it.
    """
    if mode not in (None, "w", "wb"):
        raise ValueError(f"atomic_write: mode must be None, 'w' or 'wb', got {mode!r}")
    target = Path(path)
    if (target.exists() and not target.is_file()) or target.absolute().parent == Path("/dev"):
        raise OSError(errno.EINVAL, "cannot be written, it is not a regular file", str(path))
    make_folder(target.parent)
    # keep the suffix: writers such as imageio choose the format by it
    temp = target.with_name(f"{TEMP_MARK}{uuid.uuid4().hex[:12]}-{target.name}")
    try:
        if mode is None:
            yield temp
            if not temp.exists():
                raise FileNotFoundError(f"nothing was written for {target}")
            fsync_path(temp)
        else:
            with open(temp, mode, encoding=None if "b" in mode else "utf-8") as handle:
                yield handle
                handle.flush()
                os.fsync(handle.fileno())
        os.replace(temp, target)
        fsync_path(target.parent)
    finally:
        temp.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary folder that becomes ``path`` when the block ends, or is removed if it raises.

    Raises OSError if there is already something at ``path`` that is no empty folder.
    """
    target = Path(path).absolute()
    make_folder(target.parent)
    temp = target.with_name(f"{TEMP_MARK}{uuid.uuid4().hex[:12]}-{target.name}")
    temp.mkdir()
    try:
        yield temp
        for folder, _, files in os.walk(temp, topdown=False):
            for name in files:
                fsync_path(Path(folder) / name)
            fsync_path(folder)
        os.rename(temp, target)
        fsync_path(target.parent)
    finally:
        shutil.rmtree(temp, ignore_errors=True)


def remove_any(path: str | os.PathLike[str]) -> None:
    """Remove whatever is there: a folder with its content, a file, a link, a pipe; or nothing.

    (``shutil.rmtree`` opens a pipe and waits for its writer.)
    """
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path, ignore_errors=True)
    elif os.path.lexists(path):
        os.unlink(path)


def remove_leftovers(folder: str | os.PathLike[str]) -> None:
    """Remove the temporary files that a crash left in ``folder`` (not in folders below it).

    Call it only where no other process can be writing.
    """
    for path in list(Path(folder).iterdir()):
        if re.match(rf"{re.escape(TEMP_MARK)}[0-9a-f]{{12}}-", path.name):
            path.unlink(missing_ok=True)


def atomic_torch_save(obj: Any, path: str | os.PathLike[str]) -> None:
    """``torch.save`` that never leaves a torn file."""
    import torch  # environment workers import this file and must not pay for torch

    with atomic_write(path, "wb") as handle:
        torch.save(obj, handle)


def atomic_json(obj: Any, path: str | os.PathLike[str], *, indent: int = 2) -> None:
    """Write JSON; keys keep their order, a final newline is added."""
    with atomic_write(path, "w") as handle:
        json.dump(obj, handle, indent=indent)
        handle.write("\n")


def atomic_yaml(obj: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Write plain data as YAML that ``yaml.safe_load`` reads back; keys keep their order."""
    import yaml  # the doctor imports this file and must run without any package

    with atomic_write(path, "w") as handle:
        yaml.safe_dump(dict(obj), handle, sort_keys=False, default_flow_style=False)
