"""Writes HDF5 files whole or not at all, even on a full disk.

The HDF5 library does not recover from a failed write: it reports it again and again while the
file is closed, and may then crash the process. So it writes through an object that accepts
everything and remembers the first error, which is raised when the library is done.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py

from common_utils.atomic import atomic_write


class _Writer:
    """The file object for h5py's "fileobj" driver, on a file descriptor; no call ever fails."""

    def __init__(self, fd: int) -> None:
        self._fd, self._at = fd, 0
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        done = 0
        while self.error is None and done < len(view):
            try:
                done += os.pwrite(self._fd, view[done:], self._at + done)
            except OSError as error:
                self.error = error
        self._at += len(view)
        return len(view)

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        view[:] = bytes(len(view))  # what could not be written reads as zeros
        done = 0
        while done < len(view):
            data = os.pread(self._fd, len(view) - done, self._at + done)
            if not data:
                break
            view[done : done + len(data)] = data
            done += len(data)
        self._at += len(view)
        return len(view)

    def read(self, size: int) -> bytes:
        data = bytearray(size)
        self.readinto(data)
        return bytes(data)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: os.fstat(self._fd).st_size}
        self._at = start[whence] + offset
        return self._at

    def tell(self) -> int:
        return self._at

    def truncate(self, size: int | None = None) -> int:
        size = self._at if size is None else size
        try:
            os.ftruncate(self._fd, size)
        except OSError as error:
            self.error = self.error or error
        return size

    def flush(self) -> None:
        """Nothing is buffered."""


@contextmanager
def atomic_h5(path: str | os.PathLike[str]) -> Iterator[h5py.File]:
    """An HDF5 file to write, which replaces ``path`` when the block ends without an exception.

    Raises the OSError of the first write that failed (disk full, quota, file size limit).
    """
    with atomic_write(path) as temp:
        fd = os.open(Path(temp), os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        writer = _Writer(fd)
        try:
            with h5py.File(writer, "w") as file:
                yield file
        except Exception:
            if writer.error is None:  # else this is only the library's consequence of it
                raise
        finally:
            os.close(fd)
        if writer.error is not None:
            raise OSError(writer.error.errno, writer.error.strerror, str(path))
