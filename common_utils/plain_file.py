"""Reads small files that cannot be trusted: regular files (no pipe or device) up to a limit."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path


def read_small_text(path: str | os.PathLike[str], limit: int) -> str:
    """The UTF-8 text of a regular file of up to ``limit`` bytes; follows links.

    Raises OSError if it cannot be opened, ValueError if anything else is wrong with it.
    """
    # O_NONBLOCK: opening a pipe that nobody writes to would wait forever
    fd = os.open(Path(path), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(fd, "rb") as file:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise ValueError("not an ordinary file (a folder, pipe or device)")
        data = file.read(limit + 1)
    if len(data) > limit:
        raise ValueError(f"larger than {limit:,} bytes")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 text: {error.reason} at byte {error.start}") from None


def read_id(path: str | os.PathLike[str]) -> str:
    """The id in a file: up to 128 letters, digits, "_" and "-"; "" if the file holds none."""
    try:
        text = read_small_text(path, 1000).strip()
    except (OSError, ValueError):
        return ""
    return text if re.fullmatch(r"[\w-]{1,128}", text, re.ASCII) else ""
