"""Whether two folders hold the same run, whatever happened on the way."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from tensorboard.compat.proto.event_pb2 import Event

from common_utils import run_id
from common_utils.run_info import INFO_FILE
from common_utils.run_state import latest_state, load_state
from tests.runs import TIMING, metrics

EVENTS = "tb"
# of a state: what measures time, names files whose names and contents do, or is random
TIMED = ("log.wall", "log.files", "watch", "counters.train_seconds", run_id.ENTRY)
OPTIONS = ("resume", "overwrite", "save_dir")


def differences(run: Path, whole: Path) -> list[str]:
    """What in ``run`` is not as in ``whole``: names, weights, configuration, records, state."""
    found = [f"files: {line}" for line in _unequal(_names(run), _names(whole))]
    if found:
        return found
    for path in sorted(p for p in whole.rglob("*") if p.is_file()):
        name = path.relative_to(whole)
        if name.parts[0] not in ("state", EVENTS):
            found += [f"{name}{line}" for line in _of_file(run / name, path)]
    if metrics(run) != metrics(whole):
        found.append(f"metrics.jsonl: {metrics(run)}, expected {metrics(whole)}")
    found += [f"{EVENTS}: {line}" for line in _unequal(_scalars(run), _scalars(whole))]
    return found + _of_state(run, whole)


def _names(run: Path) -> list[str]:
    """Of all files and folders; TensorBoard's hold the time and the process."""
    names = [str(p.relative_to(run)) for p in run.rglob("*") if p.parent.name != EVENTS]
    return sorted(name for name in names)


def _unequal(mine: Sequence[Any], theirs: Sequence[Any]) -> list[str]:
    """Entries that one has more often than the other."""
    rest, more = list(theirs), []
    for entry in mine:
        if entry in rest:
            rest.remove(entry)
        else:
            more.append(entry)
    too_many = [f"{entry} is too many" for entry in more[:5]]
    return too_many + [f"{entry} is missing" for entry in rest[:5]]


def _of_file(mine: Path, theirs: Path) -> list[str]:
    if theirs.suffix in (".jsonl", ".log") or theirs.name in (run_id.ID_FILE, INFO_FILE):
        return []
    if theirs.suffix == ".pt":
        return _of_trees(torch.load(mine, weights_only=True), torch.load(theirs, weights_only=True))
    if theirs.suffix == ".yaml":
        trees = [yaml.safe_load(p.read_text()) for p in (mine, theirs)]
        own = [{k: v for k, v in tree.items() if k not in OPTIONS} for tree in trees]
        return _of_trees(own[0], own[1])
    return [] if mine.read_bytes() == theirs.read_bytes() else [": other bytes"]


def _scalars(run: Path) -> list[tuple[int, str]]:
    """(step, tag) of every number in TensorBoard's files that measures no time."""
    events = [e for path in sorted((run / EVENTS).iterdir()) for e in _events(path.read_bytes())]
    found = [(event.step, value.tag) for event in events for value in event.summary.value]
    return [entry for entry in found if not entry[1].startswith(TIMING)]


def _events(data: bytes) -> Iterator[Event]:
    """Each is preceded by its length and a checksum, and followed by another."""
    place = 0
    while place < len(data):
        (length,) = struct.unpack_from("<Q", data, place)
        begin = place + 12
        if begin + length + 4 > len(data):
            raise AssertionError(f"{EVENTS}: an event is torn at byte {place}")
        yield Event.FromString(data[begin : begin + length])
        place = begin + length + 4


def _of_state(run: Path, whole: Path) -> list[str]:
    """The newest states, their parts included."""
    paths = [latest_state(folder / "state") for folder in (run, whole)]
    mine, theirs = (load_state(path) for path in paths if path is not None)
    found = [f"state{line}" for line in _of_trees(mine.tree, theirs.tree)]
    for path in sorted(p for p in (theirs.path / "parts").rglob("*") if p.is_file()):
        name = path.relative_to(theirs.path)
        found += [f"state/{name}{line}" for line in _of_file(mine.path / name, path)]
    return found


def _of_trees(mine: Any, theirs: Any, where: str = "") -> list[str]:
    """Entries that are not equal, bit for bit."""
    if any(where == f".{name}" or where.startswith(f".{name}.") for name in TIMED):
        return []
    if isinstance(theirs, Mapping):
        if not isinstance(mine, Mapping) or mine.keys() != theirs.keys():
            return [f"{where}: {mine}, expected {theirs}"]
        return [x for k in theirs for x in _of_trees(mine[k], theirs[k], f"{where}.{k}")]
    if isinstance(theirs, (list, tuple)):
        if not isinstance(mine, (list, tuple)) or len(mine) != len(theirs):
            return [f"{where}: {mine}, expected {theirs}"]
        pairs = enumerate(zip(mine, theirs, strict=True))
        return [x for n, (a, b) in pairs for x in _of_trees(a, b, f"{where}.{n}")]
    return [] if _same(mine, theirs) else [f"{where}: {mine}, expected {theirs}"]


def _same(mine: Any, theirs: Any) -> bool:
    if type(mine) is not type(theirs):
        return False
    if isinstance(theirs, torch.Tensor):
        return mine.dtype == theirs.dtype and torch.equal(mine, theirs)
    if isinstance(theirs, np.ndarray):
        return mine.dtype == theirs.dtype and np.array_equal(mine, theirs)
    return mine == theirs or (mine != mine and theirs != theirs)
