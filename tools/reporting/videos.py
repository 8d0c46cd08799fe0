"""The videos of a report: MP4 files below the given folders, embedded up to a size."""

from __future__ import annotations

import base64
import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from tools.reporting.runs import Run

MOST_ENTRIES = 100_000  # of folders that are looked through


class Video(NamedTuple):
    """A video to embed: the run's name ("" if it lies in no run's folder), its path, a data URI."""

    run: str
    name: str
    uri: str


def find(folders: Sequence[Path]) -> list[Path]:
    """MP4 files below the folders, in name order; links are not followed."""
    return sorted({path.absolute() for folder in folders for path in _below(folder)})


def _below(folder: Path) -> Iterator[Path]:
    seen = 0
    for root, _, names in os.walk(folder):
        for name in names:
            seen += 1
            path = Path(root) / name
            if name.lower().endswith(".mp4") and not path.is_symlink():
                yield path
        if seen > MOST_ENTRIES:
            return


def embed(paths: Sequence[Path], runs: Sequence[Run], limit: int) -> tuple[list[Video], list[str]]:
    """Videos of up to ``limit`` bytes in all, one of each run first, then the second of each; and
    notes about those left out."""
    chosen, notes, used = [], [], 0
    turns: dict[str, int] = {}
    queue = []
    for path in paths:
        owner = _owner(path, runs)
        name = "" if owner is None else owner.name
        turns[name] = turns.get(name, -1) + 1
        base = path.parent if owner is None else owner.folder.absolute()
        queue.append((turns[name], name, str(path.relative_to(base)), path))
    left_out = []
    for _, run, name, path in sorted(queue, key=lambda item: item[:3]):
        try:
            size = path.stat().st_size
            if used + size > limit:
                left_out.append(f"{path.name} ({size / 1e6:.1f} MB)")
                continue
            data = read_mp4(path, limit)
        except (OSError, ValueError) as error:
            notes.append(f"{path}: {error}")
            continue
        used += size
        uri = f"data:video/mp4;base64,{base64.b64encode(data).decode()}"
        chosen.append(Video(run, name, uri))
    if left_out:
        listed = ", ".join(left_out[:10]) + (", ..." if len(left_out) > 10 else "")
        notes.append(
            f"{len(left_out)} videos do not fit into {limit / 1e6:g} MB (--max_video_mb): {listed}"
        )
    return chosen, notes


def read_mp4(path: Path, limit: int) -> bytes:
    """The bytes of an MP4 file; ValueError for any other file."""
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    with open(fd, "rb") as file:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise ValueError("not an ordinary file")
        data = file.read(limit + 1)
    if data[4:8] != b"ftyp":
        raise ValueError("not an MP4 file")
    return data


def _owner(path: Path, runs: Sequence[Run]) -> Run | None:
    """The run in whose folder the file lies, the innermost one."""
    inside = [run for run in runs if path.is_relative_to(run.folder.absolute())]
    return max(inside, key=lambda run: len(run.folder.absolute().parts), default=None)
