"""What ``tools.inspect_dataset`` finds in demonstrations of any format: facts, ranges, problems.

Whether training could read them is asked of the reader itself (``bc.demos``).
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from bc.demo_arrays import FAULTS, Stored
from bc.demos import DatasetError, Demos
from bc.formats import format_of, open_demos
from bc.loader import DemoFile
from common_utils.demo_file import CFG_NAME
from common_utils.resources import format_bytes
from common_utils.success_rule import SparseReward
from env.config import EnvConfig
from env.factory import success_rule
from env.suites import SUITES

# images are large: ranges come from this many frames of each demonstration
FRAMES_READ = 3
UNREADABLE = (*FAULTS, DatasetError)


@dataclass
class KeyStats:
    """One dataset of the demonstrations: ``shape`` of a step, range over all values read."""

    dtype: str
    shape: tuple[int, ...]
    demos: int = 0
    bytes: int = 0
    low: float = np.inf
    high: float = -np.inf
    total: float = 0.0
    count: int = 0

    def add(self, values: np.ndarray) -> None:
        """Take in finite numbers."""
        finite = values[np.isfinite(values)] if values.dtype.kind == "f" else values
        if finite.size:
            self.low = min(self.low, float(finite.min()))
            self.high = max(self.high, float(finite.max()))
            self.total += float(finite.sum(dtype=np.float64))
            self.count += finite.size


@dataclass
class Report:
    """The findings. ``problems``: text -> names of the demonstrations that have it."""

    path: Path
    facts: dict[str, str] = field(default_factory=dict)
    lengths: list[int] = field(default_factory=list)
    returns: list[float] = field(default_factory=list)
    first_success: list[int] = field(default_factory=list)
    keys: dict[str, KeyStats] = field(default_factory=dict)
    actions: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), np.float32))
    problems: dict[str, list[str]] = field(default_factory=dict)
    raw: bool = False
    # success can be read from rewards alone
    sparse: bool = False

    def problem(self, text: str, name: str = "") -> None:
        """Note a problem, of one demonstration or of the whole file."""
        self.problems.setdefault(text, []).extend([name] if name else [])


def inspect(path: str | Path) -> Report:
    """Read everything (only a few frames of images); DatasetError if it cannot be opened."""
    with open_demos(path) as file:
        report = Report(Path(path), sparse=_sparse(file))
        report.facts["format"] = format_of(path).name
        try:
            _facts(file, report)
        except UNREADABLE as error:
            report.problem(f"attributes cannot be read (damaged file?): {error}")
        seen: dict[str, str] = {}
        actions = []
        for name in file.names:
            try:
                actions.append(_one_demo(file, name, report, seen))
            except UNREADABLE as error:
                report.problem(_without_place(error, file, name), name)
        widths = {a.shape[1] for a in actions}
        if len(widths) == 1:
            report.actions = np.concatenate(actions)
        elif widths:
            report.problem(f"actions of {len(widths)} different widths: {sorted(widths)}")
        _compare_keys(report, len(file.names))
        try:
            if not report.raw:
                _inputs(file, report)
        except UNREADABLE as error:
            report.problem(_without_place(error, file, file.names[0]), file.names[0])
        return report


def _sparse(file: Demos) -> bool:
    """Whether a reward of 1 means success in the file's suite."""
    known = file.suite in SUITES
    return known and isinstance(success_rule(EnvConfig(suite=file.suite)), SparseReward)


def _without_place(error: Exception, file: Demos, name: str) -> str:
    """The same fault of several demonstrations is one problem: drop file and demonstration."""
    message = str(error).removeprefix(f"'{file.path}', ")
    return message.removeprefix(f"{name}, ") if name else message


def _facts(file: Demos, report: Report) -> None:
    args, facts = file.env_args, report.facts
    kwargs = args.get("env_kwargs") or {}
    facts["size"] = format_bytes(_size(file.path))
    facts["environment"] = f"{file.suite or '?'}/{file.env_name or '?'}"
    if file.fps:
        facts["steps per second"] = f"{file.fps:g}"
    if file.notes:
        facts["note"] = "; ".join(file.notes)
    if kwargs.get("robots"):
        facts["robots"] = str(kwargs["robots"])
    if kwargs.get("controller_configs"):
        facts["actions"] = "relative (delta)" if file.delta_control else "absolute"
    for key, value in file.facts().items():
        facts[key] = _short(value)
    for key, value in args.items():
        if key not in ("env_name", "env_kwargs"):
            facts[f"env_args.{key}"] = _short(value)
    for key, value in kwargs.items():
        if key != "robots":
            facts[f"env_kwargs.{key}"] = _short(value)
    _masks(file, report)
    _check_env_args(file, report)


def _check_env_args(file: Demos, report: Report) -> None:
    args, side = file.env_args, file.path.parent / CFG_NAME
    if not isinstance(file, DemoFile):  # other formats seldom name an environment of ours
        if not args:
            report.facts["environment"] += (
                ": training takes --env.suite and --env.task, or --num_eval_episode 0"
            )
        return
    if not args:
        report.problem("neither env_args nor env_cfg.json: the environment is unknown")
    if side.is_file() and _json(side) != args:
        report.problem(f"{side.name} next to the file differs from its env_args")


def _size(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())


def _masks(file: Demos, report: Report) -> None:
    try:
        keys = file.filter_keys()
    except DatasetError as error:
        report.problem(_without_place(error, file, ""))
        return
    for key in keys:
        try:
            report.facts[f"filter key {key}"] = f"{len(file.filtered(key))} demonstrations"
        except DatasetError as error:
            report.problem(_without_place(error, file, ""))


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError, RecursionError):
        return None


def _short(value: Any, limit: int = 100) -> str:
    text = " ".join(str(value).split())
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


def _inputs(file: Demos, report: Report) -> None:
    """What policies can be trained on, as the reader gives it for the first demonstration."""
    name, found, faults = file.names[0], [], []
    for kind in ("state", "prop"):
        try:
            found.append(f"{kind} of {file.vector(name, kind).shape[1]} numbers")
        except UNREADABLE as error:
            faults.append(_without_place(error, file, name))
    for key in file.obs_keys(name):
        if key.endswith("_image"):
            camera = key.removesuffix("_image")
            try:
                found.append(f"camera {camera} of {file.layout(name, camera).width} pixels")
            except UNREADABLE as error:
                faults.append(_without_place(error, file, name))
    if found:
        report.facts["for policies"] = ", ".join(found)
    else:
        report.problem(f"no policy can be trained on it: {faults[0]}")


def _one_demo(file: Demos, name: str, report: Report, seen: dict[str, str]) -> np.ndarray:
    file.length(name)  # reports missing and empty actions
    actions = file.array(name, "actions")
    if actions.ndim != 2 or actions.dtype.kind not in "fiu":
        raise file.error(
            name, "actions", f"expected numbers [T, A], got {actions.dtype}{list(actions.shape)}"
        )
    report.lengths.append(len(actions))
    twin = seen.setdefault(hashlib.sha1(actions.tobytes()).hexdigest(), name)
    if twin != name:
        report.problem(f"the same actions as {twin}", name)
    if file.has(name, "rewards"):
        _rewards(file, name, report)
    if not file.obs_keys(name):
        report.raw = True
    for check in (lambda: file.actions(name), lambda: file.check(name)):
        try:
            check()
        except DatasetError as error:
            report.problem(_without_place(error, file, name), name)
    for key in file.all_keys(name):
        try:
            _one_key(file, name, key, report)
        except UNREADABLE as error:
            report.problem(_without_place(error, file, name), name)
    return actions


def _rewards(file: Demos, name: str, report: Report) -> None:
    rewards = file.rewards(name)
    report.returns.append(float(rewards.sum()))
    if not report.sparse:
        return
    hits = np.flatnonzero(rewards == 1)
    if len(hits):
        report.first_success.append(int(hits[0]) + 1)
    else:
        report.problem("no step has reward 1: not a successful demonstration", name)


def _one_key(file: Demos, name: str, key: str, report: Report) -> None:
    found = file.stored(name, key)
    shape, length = found.shape[1:], report.lengths[-1]
    stats = report.keys.setdefault(key, KeyStats(str(found.dtype), shape))
    stats.demos += 1
    stats.bytes += found.bytes
    if (stats.shape, stats.dtype) != (shape, str(found.dtype)):
        report.problem(
            f"{key} is {found.dtype}{list(shape)} per step, elsewhere {stats.dtype}"
            f"{list(stats.shape)}", name
        )  # fmt: skip
    if found.ndim == 0 or found.dtype.kind not in "fiub":
        if key.startswith("obs/"):
            report.problem(
                f"{key}: expected numbers [T, ...], got {found.dtype}{list(found.shape)}", name
            )
        return
    if found.shape[0] != length:
        report.problem(f"{key} has {found.shape[0]} steps, actions {length}", name)
    if key.endswith("_image") and found.shape[0]:
        _images(file, name, key, found, report)
        return
    values = file.array(name, key)
    stats.add(values)
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        report.problem(f"{key} holds NaN or infinity", name)


def _images(file: Demos, name: str, key: str, found: Stored, report: Report) -> None:
    camera = key.removeprefix("obs/").removesuffix("_image")
    steps = spread(found.shape[0], FRAMES_READ)
    frames = None
    if key.startswith("obs/"):  # what policies see, as they see it
        try:
            layout = file.layout(name, camera)
            stated = f"{layout}{', read transposed' if layout.channels_last else ''}"
            report.facts.setdefault(f"layout of {key}", stated)
            frames = file.images(name, camera, steps)
        except DatasetError as error:
            report.problem(_without_place(error, file, name), name)
    frames = file.array(name, key)[steps] if frames is None else frames
    report.keys[key].add(frames)
    if frames.size and int(frames.min()) == int(frames.max()):
        report.problem(f"{key} is one colour ({int(frames.min())}): nothing was rendered", name)
    elif len(frames) > 1 and (frames == frames[:1]).all():
        report.problem(f"{key} never changes", name)


def _compare_keys(report: Report, demos: int) -> None:
    for key, stats in report.keys.items():
        if stats.demos < demos:
            report.problem(f"{key} is in {stats.demos} of {demos} demonstrations only")


def spread(length: int, count: int) -> np.ndarray:
    """At most ``count`` step numbers from the first to the last, ascending, unique."""
    return np.unique(np.linspace(0, length - 1, min(count, length)).astype(int))
