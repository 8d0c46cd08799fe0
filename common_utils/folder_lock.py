"""Who may write to a folder: one process at a time, by a file that is locked while it runs.

The lock is ``flock``'s, so it ends with the process, however that ends.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import stat
import time
import warnings
from pathlib import Path

from common_utils.errors import ConfigError

LOCK_NAME = ".lock"
# errors of file systems without locks
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)


class FolderLock:
    """The lock of an existing folder.

    field: the option that names the folder, for messages.
    """

    def __init__(self, folder: Path, field: str = "save_dir") -> None:
        self.path, self.field = folder / LOCK_NAME, field
        self._handle: int | None = None

    def acquire(self) -> None:
        """Take the lock. Raises ConfigError if another process holds it, or if its file is not an
        ordinary one. A file system without locks is a warning."""
        while self._handle is None:
            handle = self._open()
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = _read(handle)
                os.close(handle)
                raise ConfigError(
                    f"{self.field}: '{self.path.parent}' is in use by "
                    f"{holder or 'another process'}; wait until it ends, stop it, or choose "
                    f"another {self.field}"
                ) from None
            except OSError as error:
                if error.errno not in _NO_LOCKS:
                    os.close(handle)
                    raise
                warnings.warn(
                    f"'{self.path.parent}' cannot be locked ({error.strerror}); do not start a "
                    "second run",
                    stacklevel=3,
                )
            if _is_open_at(handle, self.path):
                self._handle = handle
            else:  # the process that held it has just ended and removed it
                os.close(handle)
        started = time.strftime("%Y-%m-%d %H:%M:%S")
        os.ftruncate(self._handle, 0)
        os.pwrite(
            self._handle,
            f"process {os.getpid()} on {socket.gethostname()} since {started}".encode(),
            0,
        )

    def _open(self) -> int:
        """The lock file, made if there is none. It is written to, so in a folder of somebody else
        it may not be a link to another file, and nobody may be waited for."""
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK
        try:
            handle = os.open(self.path, flags, 0o644)
        except OSError as error:
            if error.errno not in (errno.ELOOP, errno.ENXIO):
                raise
        else:
            if stat.S_ISREG(os.fstat(handle).st_mode):
                return handle
            os.close(handle)
        raise ConfigError(
            f"{self.field}: '{self.path}' is a link, a pipe or a device, expected an ordinary "
            "file or nothing; remove it"
        )

    def release(self) -> None:
        """Give the lock back, and remove its file; nothing if it is not held."""
        if self._handle is not None:
            if self.is_held:
                self.path.unlink(missing_ok=True)
            os.close(self._handle)
            self._handle = None

    @property
    def is_held(self) -> bool:
        """Whether this process has the lock, and its file is still the one in the folder."""
        return self._handle is not None and _is_open_at(self._handle, self.path)


def holder_of(folder: Path) -> str:
    """The process that holds a folder ("process 12 on host since ..."), "" if nobody does.

    Call it only where no process of one's own is just starting in the folder: for a moment it
    would find the folder in use.
    """
    try:
        handle = os.open(folder / LOCK_NAME, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return ""
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _read(handle) or "another process"
    except OSError:  # a file system without locks
        return ""
    finally:
        os.close(handle)
    return ""


def _read(handle: int) -> str:
    return os.pread(handle, 200, 0).decode(errors="replace").strip()


def _is_open_at(handle: int, path: Path) -> bool:
    """Whether the open file is still the one at ``path``."""
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path))
    except (FileNotFoundError, NotADirectoryError):
        return False
