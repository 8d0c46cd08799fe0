"""Silences C libraries that print what nobody asked for."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def silenced() -> Iterator[None]:
    """Discard this process's standard output and error; exceptions still propagate."""
    sys.stdout.flush()
    sys.stderr.flush()
    saved = [os.dup(fd) for fd in (1, 2)]
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        for fd in (1, 2):
            os.dup2(nowhere, fd)
        yield
    finally:
        ctypes.CDLL(None).fflush(None)  # C keeps a buffer of its own
        for fd, before in zip((1, 2), saved, strict=True):
            os.dup2(before, fd)
            os.close(before)
        os.close(nowhere)
