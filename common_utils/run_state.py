"""Resumable run state on disk: complete or not counted.

    state/step_000012000/   tree.pt      nested dict of tensors, arrays, numbers, strings
                            parts/NAME/  whatever ``parts[NAME].save(path)`` wrote
                            COMPLETE     manifest: step, size and checksum of every file

A state is written to a temporary folder, forced to disk and renamed; it counts only if its
COMPLETE marker is there and agrees with the files. Nothing is unpickled: ``tree.pt`` is read
with ``torch.load(weights_only=True)``.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import uuid
import warnings
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import numpy as np
import torch

from common_utils.atomic import fsync_path

MARKER = "COMPLETE"
_TEMP, _OLD = ".tmp_step_", ".old_"
_NDARRAY = "__ndarray__"
_being_written: set[str] = set()  # temporary folders of this process


class StateError(RuntimeError):
    """A saved state is missing, incomplete or damaged."""


class SavesItself(Protocol):
    """Something big (the replay) that writes its own files into an existing empty folder."""

    def save(self, path: Path) -> None: ...


@dataclass(frozen=True)
class RunState:
    """A state read back: ``tree`` as it was given, big parts as folders."""

    step: int
    tree: dict[str, Any]
    path: Path

    def part(self, name: str) -> Path:
        """Folder that ``parts[name].save`` wrote; StateError if the state has no such part."""
        folder = self.path / "parts" / name
        if not folder.is_dir():
            raise StateError(f"{self.path}: has no part '{name}'")
        return folder


# ---------------------------------------------------------------- writing


def save_state(
    root: str | os.PathLike[str],
    step: int,
    tree: Mapping[str, Any],
    parts: Mapping[str, SavesItself] | None = None,
    keep: int = 1,
) -> Path:
    """Write ``root/step_{step}`` and remove all but the newest ``keep`` complete states.

    ``tree``: nested dicts (string or int keys), lists and tuples of tensors, numpy arrays,
    int, float, bool, str, bytes, None. Raises TypeError naming the entry on anything else.
    Older states are removed only after the new one is complete, so disk must hold keep + 1.
    """
    if step < 0 or keep < 1:
        raise ValueError(f"save_state: step {step} and keep {keep} must be >= 0 and >= 1")
    root = Path(root)
    root.mkdir(parents=True, exist_ok=True)
    _recover(root)
    temp = root / f"{_TEMP}{step}_{os.getpid()}_{uuid.uuid4().hex[:8]}"
    _being_written.add(temp.name)
    try:
        temp.mkdir()
        with open(temp / "tree.pt", "wb") as handle:  # a file object, so that a full disk is told
            torch.save(_encode(dict(tree), "tree"), handle)
        for name, part in (parts or {}).items():
            folder = temp / "parts" / name
            folder.mkdir(parents=True)
            part.save(folder)
        _write_marker(temp, step)
        target = root / f"step_{step:09d}"
        if target.exists():  # the same step again: set aside, put back by _recover if we die here
            target.rename(root / f"{_OLD}{target.name}")
        temp.rename(target)
        fsync_path(root)
    finally:
        shutil.rmtree(temp, ignore_errors=True)
        _being_written.discard(temp.name)
    _recover(root)
    for stale in _complete_states(root)[keep:]:
        # renamed first, so that a crash while deleting never leaves a thinned-out state
        trash = root / f"{_TEMP}trash_{os.getpid()}_{uuid.uuid4().hex[:8]}"
        stale.rename(trash)
        shutil.rmtree(trash, ignore_errors=True)
    return target


def _write_marker(folder: Path, step: int) -> None:
    files = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        fsync_path(path)
        files[str(path.relative_to(folder))] = {"bytes": path.stat().st_size, "crc32": _crc32(path)}
    marker = folder / MARKER
    marker.write_text(json.dumps({"step": step, "files": files}, indent=1) + "\n")
    fsync_path(marker)
    for path in [folder, *(p for p in folder.rglob("*") if p.is_dir())]:
        fsync_path(path)


def _crc32(path: Path) -> int:
    crc = 0
    with open(path, "rb") as handle:
        while chunk := handle.read(1 << 22):
            crc = zlib.crc32(chunk, crc)
    return crc


def _recover(root: Path) -> None:
    """Put back a state set aside by a writer that died; remove its temporary folders."""
    for old in root.glob(f"{_OLD}step_*"):
        target = root / old.name.removeprefix(_OLD)
        if target.exists():
            shutil.rmtree(old, ignore_errors=True)
        else:
            old.rename(target)
    for temp in root.glob(f"{_TEMP}*"):
        pid = int(temp.name.rsplit("_", 2)[1])
        # our own process number may be that of a dead writer in an earlier container
        writing = temp.name in _being_written if pid == os.getpid() else _alive(pid)
        if not writing:
            shutil.rmtree(temp, ignore_errors=True)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _encode(value: Any, where: str) -> Any:
    """``value`` with arrays as tagged tensors: what a weights_only load accepts."""
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, (str, int)):
                raise TypeError(f"{where}: keys must be strings or ints, got {key!r}")
        return {k: _encode(v, f"{where}.{k}") for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)([_encode(v, f"{where}[{i}]") for i, v in enumerate(value)])
    if isinstance(value, np.ndarray):
        if value.dtype.kind not in "biuf":
            raise TypeError(f"{where}: cannot save an array of dtype {value.dtype}")
        raw = np.frombuffer(np.ascontiguousarray(value).tobytes(), np.uint8).copy()
        return {
            _NDARRAY: torch.from_numpy(raw),
            "dtype": value.dtype.str,
            "shape": list(value.shape),
        }
    if isinstance(value, np.generic):
        return _encode(value.item(), where)
    if isinstance(value, torch.Tensor):
        return value.detach()
    if value is None or isinstance(value, (bool, int, float, str, bytes)):
        return value
    raise TypeError(f"{where}: cannot save a {type(value).__name__}; use its state_dict()")


def _decode(value: Any) -> Any:
    if isinstance(value, dict):
        if _NDARRAY in value:
            raw = value[_NDARRAY].cpu().numpy().tobytes()
            return np.frombuffer(raw, np.dtype(value["dtype"])).reshape(value["shape"]).copy()
        return {k: _decode(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_decode(v) for v in value)
    return value


# ---------------------------------------------------------------- reading


def _complete_states(root: Path) -> list[Path]:
    """Folders with a marker, newest step first (contents not verified)."""
    found = [
        (int(m.group(1)), p)
        for p in root.glob("step_*")
        if (m := re.fullmatch(r"step_(\d+)", p.name)) and (p / MARKER).is_file()
    ]
    return [p for _, p in sorted(found, reverse=True)]


def verify_state(path: str | os.PathLike[str]) -> int:
    """The step of a complete, undamaged state; StateError says what is wrong otherwise."""
    path = Path(path)
    try:
        manifest = json.loads((path / MARKER).read_text())
        step, files = int(manifest["step"]), dict(manifest["files"])
    except FileNotFoundError:
        raise StateError(f"{path}: no complete state here (no {MARKER} marker)") from None
    except (ValueError, KeyError, TypeError) as error:
        raise StateError(f"{path}: damaged: {MARKER} cannot be read ({error})") from None
    for name, want in files.items():
        file = path / name
        if not file.is_file():
            raise StateError(f"{path}: damaged: {name} is missing")
        if file.stat().st_size != want["bytes"]:
            size = file.stat().st_size
            raise StateError(f"{path}: damaged: {name} has {size} bytes, expected {want['bytes']}")
        if _crc32(file) != want["crc32"]:
            raise StateError(f"{path}: damaged: checksum of {name} does not match")
    return step


def latest_state(root: str | os.PathLike[str]) -> Path | None:
    """The newest undamaged state under ``root``, None if there is none at all.

    Damaged ones are passed over with a warning; StateError if nothing but damaged ones exist.
    """
    root = Path(root)
    if not root.is_dir():
        return None
    _recover(root)
    states = _complete_states(root)
    problems = []
    for path in states:
        try:
            verify_state(path)
            return path
        except StateError as error:
            problems.append(str(error))
            warnings.warn(f"{error}; trying the state before it", stacklevel=2)
    if problems:
        raise StateError("no usable state: " + "; ".join(problems))
    return None


def load_state(path: str | os.PathLike[str], map_location: Any = "cpu") -> RunState:
    """Read a state back, verified; raises StateError if it is incomplete or damaged."""
    path = Path(path)
    step = verify_state(path)
    tree = torch.load(path / "tree.pt", map_location=map_location, weights_only=True)
    return RunState(step=step, tree=_decode(tree), path=path)


# ---------------------------------------------------------------- stopping


class GracefulStop:
    """First SIGINT or SIGTERM: ``requested`` turns True, so that the loop saves and leaves.
    A second one acts at once, as without this handler.

        with GracefulStop() as stop:
            while not stop.requested: ...
    """

    def __init__(self, signals: tuple[int, ...] = (signal.SIGINT, signal.SIGTERM)) -> None:
        self.signals = signals
        self.received: int | None = None
        self._previous: dict[int, Any] = {}

    @property
    def requested(self) -> bool:
        return self.received is not None

    @property
    def signal_name(self) -> str:
        """Name of the signal received, "" if none."""
        return signal.Signals(self.received).name if self.received is not None else ""

    def _handle(self, signum: int, _frame: FrameType | None) -> None:
        if self.requested:
            self._restore()
            os.kill(os.getpid(), signum)
        self.received = signum

    def _restore(self) -> None:
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)
        self._previous.clear()

    def __enter__(self) -> GracefulStop:
        """Must run in the main thread (python delivers signals there)."""
        for signum in self.signals:
            self._previous[signum] = signal.signal(signum, self._handle)
        return self

    def __exit__(self, *_exc: object) -> None:
        self._restore()
