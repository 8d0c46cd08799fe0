"""A run's numbers on disk: ``metrics.jsonl`` and TensorBoard's files, read and cut back.

A state remembers how long these files were (:func:`position`). If a run was killed after its
newest state, resuming cuts the files back to these lengths; steps would not do, because several
records may have the same step. A file that has been changed since the state was saved is cut by
the steps and times in its records.
"""

from __future__ import annotations

import json
import math
import os
import warnings
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common_utils.atomic import atomic_write, fsync_path

METRICS = "metrics.jsonl"
EVENTS = "tb"
_EVENT_FILE = "events.out.tfevents."


def _parse(line: bytes) -> dict[str, Any] | None:
    """The record on one line, None if there is none."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) and type(record.get("step")) is int else None


def _read(path: Path) -> tuple[list[dict[str, Any]], list[int]]:
    """Records, and the numbers of other lines (a torn last line is not counted)."""
    *lines, rest = path.read_bytes().split(b"\n")
    records, bad = [], []
    for number, line in enumerate([*lines, rest] if _parse(rest) else lines, 1):
        record = _parse(line)
        if record is not None:
            records.append(record)
        elif line.strip():
            bad.append(number)
    return records, bad


def read_metrics(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Records of a ``metrics.jsonl``, each with an integer "step".

    A torn last line (killed while writing) is dropped. Other lines that are not records are
    skipped, and a warning names them.
    """
    records, bad = _read(Path(path))
    if bad:
        shown = ", ".join(map(str, bad[:5])) + (", ..." if len(bad) > 5 else "")
        warnings.warn(f"{path}: skipped lines that are not records: {shown}", stacklevel=2)
    return records


# ---------------------------------------------------------------- positions


def position(save_dir: str | os.PathLike[str]) -> dict[str, Any]:
    """The present lengths of a run's files, for its state; forces the files to disk."""
    save_dir = Path(save_dir)
    metrics = save_dir / METRICS
    where: dict[str, Any] = {"metrics": None, "events": {}}
    if metrics.is_file():
        data = metrics.read_bytes()
        where["metrics"] = {"bytes": len(data), "crc32": zlib.crc32(data)}
        fsync_path(metrics)
    for path in _event_files(save_dir):
        where["events"][path.name] = path.stat().st_size
        fsync_path(path)
    return where


def _event_files(save_dir: Path) -> list[Path]:
    """Ordinary files only: opening a pipe would wait for its writer, and cutting back what a link
    leads to would damage another file."""
    found = (save_dir / EVENTS).glob(f"{_EVENT_FILE}*")
    return sorted(path for path in found if path.is_file() and not path.is_symlink())


def remove_events(save_dir: str | os.PathLike[str]) -> None:
    """Remove TensorBoard's files of a run."""
    for path in _event_files(Path(save_dir)):
        path.unlink()


def cut_back(
    save_dir: str | os.PathLike[str], where: Any, step: int, wall: float = math.inf
) -> list[str]:
    """Cut a run's files back to a state saved at ``step``, ``wall`` seconds into the run.

    where: the state's :func:`position`; None for states of earlier versions.
    Returns lines that report what was wrong. No record from before that state is lost.
    """
    save_dir = Path(save_dir)
    metrics, events = _checked(where)
    notes = _cut_metrics(save_dir / METRICS, metrics, step, wall)
    if events is None:
        return notes
    for path in _event_files(save_dir):
        size = events.get(path.name)
        if size is None:  # created after the state
            path.unlink()
        elif path.stat().st_size > size:
            os.truncate(path, size)
    return notes


def _checked(where: Any) -> tuple[dict[str, int] | None, dict[str, int] | None]:
    """The positions of (metrics, events) that a state holds; None for each if it holds none."""
    try:
        seen, events = where["metrics"], where["events"]
        metrics = {key: int(seen[key]) for key in ("bytes", "crc32")} if seen else None
        return metrics, {str(name): int(size) for name, size in events.items()}
    except (LookupError, TypeError, ValueError, AttributeError):
        return None, None


def _cut_metrics(path: Path, seen: Mapping[str, int] | None, step: int, wall: float) -> list[str]:
    if not path.exists():
        return []
    if seen is not None and _begins_as_seen(path.read_bytes(), seen):
        os.truncate(path, seen["bytes"])
        return []
    records, bad = _read(path)
    # wall times are written to the millisecond
    kept = [r for r in records if r["step"] <= step and _wall(r) <= wall + 1e-3]
    notes = []
    changed = seen is not None and len(kept) < len(records)  # steps and times may be wrong
    if bad or changed:
        aside = set_aside(path, copy=True)
        what = f"lines that are not records: {len(bad)}" if bad else "the file was changed by hand"
        notes.append(f"{path}: {what}; a copy is kept as {aside.name}")
    with atomic_write(path, "w") as handle:
        handle.writelines(json.dumps(r) + "\n" for r in kept)
    return notes


def _begins_as_seen(data: bytes, seen: Mapping[str, int]) -> bool:
    size = seen["bytes"]
    return len(data) >= size and zlib.crc32(data[:size]) == seen["crc32"]


def _wall(record: Mapping[str, Any]) -> float:
    wall = record.get("wall")
    return float(wall) if isinstance(wall, (int, float)) else 0.0


def replace_link(path: Path) -> None:
    """Put a copy of the file that the link ``path`` leads to in its place."""
    with open(path, "rb") as source:
        data = source.read()
    path.unlink()
    with atomic_write(path, "wb") as handle:
        handle.write(data)


def set_aside(path: Path, copy: bool = False) -> Path:
    """Rename (or copy) ``path`` to a free name next to it; returns the new path."""
    number, aside = 0, path.with_name(f"{path.name}.damaged")
    while os.path.lexists(aside):
        number += 1
        aside = path.with_name(f"{path.name}.damaged{number}")
    if copy:
        with atomic_write(aside, "wb") as handle:
            handle.write(path.read_bytes())
    else:
        path.rename(aside)
    return aside
