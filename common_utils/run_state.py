"""Resumable run state on disk: complete, or ignored.

    state/step_000012000/   tree.pt      nested dict of tensors, arrays, numbers, strings
                            parts/NAME/  whatever ``parts[NAME].save(path)`` wrote
                            COMPLETE     manifest: step, size and checksum of every file

A state is written to a temporary folder, forced to disk and renamed; it counts only if its
COMPLETE marker is there and agrees with the files. The state before it stays until this one has
been read back, so that damage to one of them costs no more than the steps between the two; a
second state of the same step is ``step_000012000_1``. Nothing is unpickled: ``tree.pt`` is read
with ``torch.load(weights_only=True)``.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import signal
import termios
import uuid
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Protocol, TypeVar

import numpy as np
import torch

from common_utils.atomic import fsync_path, full_disk, make_folder, remove_any
from common_utils.errors import UserError
from common_utils.finite import check_tensors, non_finite_entry

T = TypeVar("T")

MARKER = "COMPLETE"
_TREE = "tree.pt"
_TEMP = ".tmp_step_"
_OLD = ".old_"  # earlier versions: a state set aside while its successor was renamed
_STATE_NAME = re.compile(r"step_([0-9]{1,18})(?:_([0-9]{1,9}))?")
_NDARRAY = "__ndarray__"


class StateError(UserError):
    """A saved state is missing, incomplete or damaged."""


class SavesItself(Protocol):
    """Something big (the replay) that writes its own files into an existing empty folder."""

    def save(self, path: Path) -> None: ...


@dataclass(frozen=True)
class RunState:
    """A state that was read: ``tree`` as it was saved, big parts as folders."""

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
    """Write a state of ``step`` under ``root`` and keep the ``keep`` newest readable ones.

    ``tree``: nested dicts (string or int keys), lists and tuples of tensors, numpy arrays,
    int, float, bool, str, bytes, None. Raises TypeError naming the entry on anything else, and
    NonFiniteError on a tensor or array with NaN or infinity; the earlier states stay.
    States older than those kept are removed first, so the disk must hold keep + 1. Only one
    process at a time may write to a root (see ``run_folder``).
    """
    if step < 0 or keep < 1:
        raise ValueError(f"save_state: step {step} and keep {keep} must be >= 0 and >= 1")
    check_tensors(tree, "", f"step {step}")
    root = make_folder(root)
    _remove_old_states(root, keep)
    temp = root / f"{_TEMP}{step}_{os.getpid()}_{uuid.uuid4().hex[:8]}"
    try:
        temp.mkdir()
        with open(temp / _TREE, "wb") as handle:  # a file object, so that a full disk is reported
            torch.save(_encode(dict(tree), "tree"), handle)
        for name, part in (parts or {}).items():
            folder = temp / "parts" / name
            folder.mkdir(parents=True)
            part.save(folder)
        _write_marker(temp, step)
        target = _free_name(root, step)
        temp.rename(target)
        fsync_path(root)
    finally:
        shutil.rmtree(temp, ignore_errors=True)
    return target


def _free_name(root: Path, step: int) -> Path:
    """``step_N``, or the next of ``step_N_1``, ``step_N_2`` if that step has states already."""
    names = (_STATE_NAME.fullmatch(path.name) for path in root.iterdir())
    taken = [int(name[2] or 0) for name in names if name and int(name[1]) == step]
    return root / (f"step_{step:09d}_{max(taken) + 1}" if taken else f"step_{step:09d}")


def _remove_old_states(root: Path, keep: int) -> None:
    """Remove states older than the ``keep`` newest that are proven to be readable."""
    proven = 0
    for path in _complete_states(root):
        if proven == keep:
            _remove(path)
        else:
            proven += _is_proven(path)


def _is_proven(path: Path) -> bool:
    try:
        verify_state(path)
    except StateError:
        return False
    return True


def remove_states(root: str | os.PathLike[str]) -> None:
    """Remove ``root`` and all states under it, newest first. A crash leaves the remaining states
    whole, and leftovers that :func:`tidy` removes.
    """
    for path in _complete_states(Path(root)):
        _remove(path)
    shutil.rmtree(root)


def _remove(state: Path) -> None:
    # renamed first, so that a crash while deleting never leaves part of a state
    trash = state.parent / f"{_TEMP}trash_{os.getpid()}_{uuid.uuid4().hex[:8]}"
    state.rename(trash)
    shutil.rmtree(trash, ignore_errors=True)


def tidy(root: str | os.PathLike[str]) -> None:
    """Remove what killed writers left under ``root``; call it only when no other process writes."""
    root = Path(root)
    if not root.is_dir():
        return
    for path in list(root.iterdir()):
        if path.name.startswith(_TEMP):
            remove_any(path)
        elif path.name.startswith(f"{_OLD}step_"):
            target = root / path.name.removeprefix(_OLD)
            if target.exists():
                remove_any(path)
            else:
                path.rename(target)


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


def _encode(value: Any, where: str) -> Any:
    """``value`` with arrays as tagged tensors, which a weights_only load accepts."""
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


def _named_states(root: Path) -> list[Path]:
    """What has a state's name, newest first (nothing else is checked)."""
    found = []
    for path in root.iterdir():
        if match := _STATE_NAME.fullmatch(path.name):
            found.append(((int(match[1]), int(match[2] or 0)), path))
    return [path for _, path in sorted(found, reverse=True)]


def _complete_states(root: Path) -> list[Path]:
    """Folders with a marker, newest first (contents not verified)."""
    return [path for path in _named_states(root) if os.path.isfile(path / MARKER)]


def _manifest(path: Path) -> tuple[int, dict[str, tuple[int, int]]]:
    """What a state's marker says: its step, and (bytes, crc32) of every file."""
    marker = path / MARKER
    if os.path.lexists(marker) and not marker.is_file():  # reading a pipe would wait forever
        raise StateError(f"{path}: damaged: {MARKER} is not an ordinary file")
    try:
        manifest = json.loads(marker.read_bytes())
        step, files = manifest["step"], manifest["files"]
        wanted = {name: (entry["bytes"], entry["crc32"]) for name, entry in files.items()}
    except (FileNotFoundError, NotADirectoryError):
        raise StateError(f"{path}: no complete state here (no {MARKER} marker)") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise StateError(
            f"{path}: damaged: {MARKER} cannot be read ({type(error).__name__}: {error})"
        ) from None
    numbers = [step, *(number for pair in wanted.values() for number in pair)]
    if not all(type(number) is int and number >= 0 for number in numbers):
        raise StateError(f"{path}: damaged: {MARKER} has a value that is not a valid number")
    if (name := _STATE_NAME.fullmatch(path.name)) and int(name[1]) != step:
        raise StateError(f"{path}: damaged: {MARKER} says step {step}")
    if _TREE not in wanted:
        raise StateError(f"{path}: damaged: {MARKER} does not list {_TREE}")
    return step, wanted


def verify_state(path: str | os.PathLike[str]) -> int:
    """The step of a complete, undamaged state; else StateError, which says what is wrong."""
    path = Path(path)
    try:
        step, files = _manifest(path)
        for name, (size, crc) in files.items():
            _verify_file(path, name, size, crc)
    except (OSError, ValueError) as error:  # ValueError: an impossible file name
        why = getattr(error, "strerror", None) or error
        raise StateError(f"{path}: damaged: a file cannot be read: {why}") from None
    return step


def _verify_file(state: Path, name: str, size: int, crc: int) -> None:
    file = state / name
    if not file.is_file():
        raise StateError(f"{state}: damaged: {name} is missing")
    if (have := file.stat().st_size) != size:
        raise StateError(f"{state}: damaged: {name} has {have} bytes, expected {size}")
    if _crc32(file) != crc:
        raise StateError(f"{state}: damaged: checksum of {name} does not match")


def _newest(root: str | os.PathLike[str], read: Callable[[Path], T]) -> T | None:
    """``read`` of the newest state that it accepts, None if there is no state at all.

    What has a state's name and is none has lost something: a writer names a state when it is whole.
    """
    root = Path(root)
    problems = []
    try:
        states = _named_states(root)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise StateError(f"{root}: cannot be read: {error.strerror}") from None
    for path in states:
        try:
            return read(path)
        except StateError as error:
            problems.append(str(error))
            warnings.warn(f"{error}; trying the state before it", stacklevel=3)
    if problems:
        raise StateError("no usable state: " + "; ".join(problems))
    return None


def latest_state(root: str | os.PathLike[str]) -> Path | None:
    """The newest undamaged state under ``root``, None if there is none at all.

    Damaged ones are skipped with a warning; StateError if all are damaged.
    """

    def verified(path: Path) -> Path:
        verify_state(path)
        return path

    return _newest(root, verified)


def load_latest(root: str | os.PathLike[str]) -> RunState | None:
    """The newest state under ``root`` that can be read; otherwise as :func:`latest_state`."""
    return _newest(root, load_state)


def load_state(path: str | os.PathLike[str], map_location: Any = "cpu") -> RunState:
    """Verify and read a state. Raises StateError if it is incomplete or damaged, or if the run had
    diverged (NaN or infinity in a tensor, which is named)."""
    path = Path(path)
    step = verify_state(path)
    try:
        tree = _decode(torch.load(path / _TREE, map_location=map_location, weights_only=True))
        if not isinstance(tree, dict):
            raise TypeError(f"a {type(tree).__name__}")
    except MemoryError:
        raise
    except Exception as error:  # torch raises many kinds, with advice that does not fit here
        kind = type(error).__name__
        raise StateError(f"{path}: damaged: {_TREE} cannot be read ({kind})") from error
    if name := non_finite_entry(tree):
        raise StateError(f"{path}: {name} holds NaN or infinity: the run had diverged")
    return RunState(step=step, tree=tree, path=path)


@contextmanager
def fitting(state: RunState) -> Iterator[None]:
    """Turns errors in the block, which restores ``state``, into a StateError."""
    try:
        yield
    except (LookupError, TypeError, AttributeError, ValueError, RuntimeError) as error:
        if full_disk(error):
            raise
        lines = str(error).splitlines() or [""]
        raise StateError(
            f"{state.path}: does not fit this run ({type(error).__name__}: {lines[0]})"
        ) from error


# ---------------------------------------------------------------- stopping


class GracefulStop:
    """Sets ``requested`` on the first SIGINT, SIGTERM, SIGHUP or SIGUSR1 (from schedulers, or from
    a terminal that is closed), so that the loop saves and leaves. The same signal a second time
    acts at once, as without this handler; different ones may arrive together, as at a logout.

        with GracefulStop() as stop:
            while not stop.requested: ...
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)

    def __init__(self) -> None:
        self.received: int | None = None  # the first signal
        self._all: set[int] = set()
        self._previous: dict[int, Any] = {}

    @property
    def requested(self) -> bool:
        return self.received is not None

    @property
    def signal_name(self) -> str:
        """Name of the signal received, "" if none."""
        return signal.Signals(self.received).name if self.received is not None else ""

    def _handle(self, signum: int, _frame: FrameType | None) -> None:
        if signum in self._all:
            self._restore()
            os.kill(os.getpid(), signum)
        self._all.add(signum)
        self.received = signum if self.received is None else self.received
        if signum == signal.SIGHUP:
            _mute_lost_terminal()

    def _restore(self) -> None:
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)
        self._previous.clear()

    def __enter__(self) -> GracefulStop:
        """Must run in the main thread (python delivers signals there)."""
        for signum in self.SIGNALS:
            if signum == signal.SIGHUP and signal.getsignal(signum) is signal.SIG_IGN:
                continue  # started with nohup
            self._previous[signum] = signal.signal(signum, self._handle)
        return self

    def __exit__(self, *_exc: object) -> None:
        self._restore()


def _mute_lost_terminal() -> None:
    """Discard further output if the terminal is gone, so that printing does not fail."""
    for stream in (1, 2):
        try:
            termios.tcgetattr(stream)
        except termios.error as error:
            if error.args[0] == errno.EIO:
                null = os.open(os.devnull, os.O_WRONLY)
                os.dup2(null, stream)
                os.close(null)
