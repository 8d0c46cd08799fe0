"""Keeping C libraries quiet that print what nobody asked for."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def silenced() -> Iterator[None]:
    """Send this process's file descriptor 1 to nowhere; errors still raise, stderr stays."""
    sys.stdout.flush()
    saved = os.dup(1)
    try:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)
        os.close(nowhere)
        yield
    finally:
        ctypes.CDLL(None).fflush(None)  # C keeps a buffer of its own
        os.dup2(saved, 1)
        os.close(saved)
