"""Report what a demonstration file holds and what is wrong with it, and draw its images.

    python -m tools.inspect_dataset release/data/robomimic/can/processed_data96.hdf5 \
        [--out sheet.png] [--demos 6] [--frames 8]

Prints demonstrations, lengths, returns, attributes, and every key with its shape and range, then
the problems found. Writes a contact sheet of the images next to the file (one row per
demonstration and camera, time from left to right), or reports that the folder is read-only. Raw
recordings (robomimic, robosuite) are read too. Exit status: 0, or 1 when problems were found, or 2
when the file cannot be read or a requested sheet cannot be written.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import imageio.v2 as imageio
import numpy as np
from PIL import Image, ImageDraw
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bc.demo_store import H5_FAULTS
from bc.demos import DatasetError
from bc.loader import DemoFile
from common_utils import h5_read
from common_utils.atomic import atomic_write
from common_utils.errors import run_program
from common_utils.options import Options, numeric
from common_utils.progress import console
from common_utils.ranges import Between
from common_utils.resources import format_bytes
from common_utils.run_config import ConfigError
from common_utils.success_rule import SparseReward
from env.config import EnvConfig
from env.factory import success_rule
from env.suites import SUITES

# images are large: ranges come from this many frames of each demonstration
FRAMES_READ = 3
# a problem that many demonstrations share is reported once, with this many of their names
NAMES_SHOWN = 4


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
    """Read the whole file (only a few frames of images); DatasetError if it cannot be opened."""
    with DemoFile(path) as file:
        report = Report(Path(path), sparse=_sparse(file))
        try:
            _facts(file, report)
        except (*H5_FAULTS, DatasetError) as error:
            report.problem(f"attributes cannot be read (damaged file?): {error}")
        seen: dict[str, str] = {}
        actions = []
        for name in file.names:
            try:
                actions.append(_one_demo(file, name, report, seen))
            except (*H5_FAULTS, DatasetError) as error:
                report.problem(_without_place(str(error), file, name), name)
        widths = {a.shape[1] for a in actions}
        if len(widths) == 1:
            report.actions = np.concatenate(actions)
        elif widths:
            report.problem(f"actions of {len(widths)} different widths: {sorted(widths)}")
        _compare_keys(report, len(file.names))
        return report


def _sparse(file: DemoFile) -> bool:
    """Whether a reward of 1 means success in the file's suite."""
    known = file.suite in SUITES
    return known and isinstance(success_rule(EnvConfig(suite=file.suite)), SparseReward)


def _without_place(message: str, file: DemoFile, name: str) -> str:
    """The same fault of several demonstrations is one problem: drop file and demonstration."""
    message = message.removeprefix(f"'{file.path}', ")
    return message.removeprefix(f"{name}, ") if name else message


def _facts(file: DemoFile, report: Report) -> None:
    args, data = file.env_args, file.data
    kwargs = args.get("env_kwargs") or {}
    facts = report.facts
    facts["size"] = format_bytes(file.path.stat().st_size)
    facts["environment"] = f"{file.suite or '?'}/{file.env_name or '?'}"
    for note in file.notes:
        facts["note"] = f"{facts['note']}; {note}" if "note" in facts else note
    if kwargs.get("robots"):
        facts["robots"] = str(kwargs["robots"])
    if kwargs.get("controller_configs"):
        facts["actions"] = "relative (delta)" if file.delta_control else "absolute"
    if not args:
        report.problem("neither env_args nor env_cfg.json: the environment is unknown")
    for key, value in data.attrs.items():
        if key not in ("env_args", "env_info"):
            facts[f"attribute {key}"] = _short(value)
    for key, value in args.items():
        if key not in ("env_name", "env_kwargs"):
            facts[f"env_args.{key}"] = _short(value)
    for key, value in kwargs.items():
        if key != "robots":
            facts[f"env_kwargs.{key}"] = _short(value)
    _masks(file, report)
    side = file.path.parent / "env_cfg.json"
    if side.is_file() and _json(side) != args:
        report.problem(f"{side.name} next to the file differs from its env_args")


def _masks(file: DemoFile, report: Report) -> None:
    try:
        keys = file.filter_keys()
    except DatasetError as error:
        report.problem(_without_place(str(error), file, ""))
        return
    for key in keys:
        try:
            report.facts[f"filter key {key}"] = f"{len(file.filtered(key))} demonstrations"
        except DatasetError as error:
            report.problem(_without_place(str(error), file, ""))


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError, RecursionError):
        return None


def _short(value: Any, limit: int = 100) -> str:
    text = " ".join(str(value).split())
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


def _one_demo(file: DemoFile, name: str, report: Report, seen: dict[str, str]) -> np.ndarray:
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
    if file.find(name, "rewards") is not None:
        _rewards(file, name, report)
    if file.find(name, "obs") is None:
        report.raw = True
    for check in (lambda: file.actions(name), lambda: file.check(name)):
        try:
            check()
        except DatasetError as error:
            report.problem(_without_place(str(error), file, name), name)
    for key, found in h5_read.datasets(file.group(name)):
        try:
            if isinstance(found, Exception):
                raise found
            _one_key(file, name, key, report)
        except h5_read.Refused as error:
            report.problem(f"'{key}': {error}", name)
        except (DatasetError, *H5_FAULTS) as error:
            report.problem(_without_place(str(error), file, name), name)
    return actions


def _rewards(file: DemoFile, name: str, report: Report) -> None:
    rewards = file.rewards(name)
    report.returns.append(float(rewards.sum()))
    if not report.sparse:
        return
    hits = np.flatnonzero(rewards == 1)
    if len(hits):
        report.first_success.append(int(hits[0]) + 1)
    else:
        report.problem("no step has reward 1: not a successful demonstration", name)


def _one_key(file: DemoFile, name: str, key: str, report: Report) -> None:
    dset = file.dataset(name, key)
    shape, length = tuple(dset.shape[1:]), report.lengths[-1]
    stats = report.keys.setdefault(key, KeyStats(str(dset.dtype), shape))
    stats.demos += 1
    stats.bytes += dset.id.get_storage_size()
    if (stats.shape, stats.dtype) != (shape, str(dset.dtype)):
        report.problem(
            f"{key} is {dset.dtype}{list(shape)} per step, elsewhere {stats.dtype}"
            f"{list(stats.shape)}", name
        )  # fmt: skip
    if dset.ndim == 0 or dset.dtype.kind not in "fiub":
        if key.startswith("obs/"):
            report.problem(
                f"{key}: expected numbers [T, ...], got {dset.dtype}{list(dset.shape)}", name
            )
        return
    if len(dset) != length:
        report.problem(f"{key} has {len(dset)} steps, actions {length}", name)
    if key.endswith("_image") and len(dset):
        _images(file, name, key, stats, report)
        return
    values = file.array(name, key)
    stats.add(values)
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        report.problem(f"{key} holds NaN or infinity", name)


def _images(file: DemoFile, name: str, key: str, stats: KeyStats, report: Report) -> None:
    dset, camera = file.dataset(name, key), key.removeprefix("obs/").removesuffix("_image")
    steps = _spread(len(dset), FRAMES_READ)
    frames = None
    if key.startswith("obs/"):  # what policies see, as they see it
        try:
            layout = file.layout(name, camera)
            stated = f"{layout}{', read transposed' if layout.channels_last else ''}"
            report.facts.setdefault(f"layout of {key}", stated)
            frames = file.images(name, camera, steps)
        except DatasetError as error:
            report.problem(_without_place(str(error), file, name), name)
    frames = dset[steps] if frames is None else frames
    stats.add(frames)
    if frames.size and int(frames.min()) == int(frames.max()):
        report.problem(f"{key} is one colour ({int(frames.min())}): nothing was rendered", name)
    elif len(frames) > 1 and (frames == frames[:1]).all():
        report.problem(f"{key} never changes", name)


def _compare_keys(report: Report, demos: int) -> None:
    for key, stats in report.keys.items():
        if stats.demos < demos:
            report.problem(f"{key} is in {stats.demos} of {demos} demonstrations only")


def _spread(length: int, count: int) -> np.ndarray:
    """At most ``count`` step numbers from the first to the last, ascending, unique."""
    return np.unique(np.linspace(0, length - 1, min(count, length)).astype(int))


# ---------------------------------------------------------------- output


def _summary(values: Sequence[float]) -> str:
    array = np.asarray(values, float)
    return (
        f"min {array.min():g}, median {np.median(array):g}, mean {array.mean():.4g}, "
        f"max {array.max():g}"
    )


def render(report: Report) -> Group:
    """The report as rich tables."""
    facts = Table(show_header=False)
    for key, value in report.facts.items():
        facts.add_row(key, Text(value))
    facts.add_row("demonstrations", str(len(report.lengths)))
    if report.lengths:
        facts.add_row("steps", f"{sum(report.lengths)}; lengths {_summary(report.lengths)}")
    if report.returns:
        facts.add_row("returns", _summary(report.returns))
    if report.returns and report.sparse:
        facts.add_row("successful", f"{len(report.first_success)} of {len(report.returns)}")
    if report.first_success:
        facts.add_row("steps to success", _summary(report.first_success))
    if report.raw:
        facts.add_row(
            "observations", "none: a raw recording (python -m tools.dataset_states_to_obs)"
        )
    parts: list[Any] = [facts, _key_table(report)]
    if report.actions.size:
        parts.append(_action_table(report.actions))
    return Group(*parts, _problem_text(report))


def _key_table(report: Report) -> Table:
    table = Table(title="keys", title_justify="left")
    for column in ("key", "one step", "min / mean / max", "stored"):
        table.add_column(column, no_wrap=True)
    for key, stats in report.keys.items():
        numbers = ""
        if stats.count:
            numbers = f"{stats.low:.3g} / {stats.total / stats.count:.3g} / {stats.high:.3g}"
        shape = "x".join(map(str, stats.shape)) or "1"
        table.add_row(key, f"{stats.dtype} {shape}", numbers, format_bytes(stats.bytes))
    return table


def _action_table(actions: np.ndarray) -> Table:
    table = Table(title="actions by dimension", title_justify="left")
    for column in ("", "min", "mean", "max", "std", "at or beyond +-1"):
        table.add_column(column)
    for number, values in enumerate(actions.T):
        with np.errstate(all="ignore"):  # faulty numbers are reported as problems
            numbers = (values.min(), values.mean(), values.max(), values.std())
        edge = float((np.abs(values) >= 1 - 1e-6).mean())
        table.add_row(str(number), *(f"{v:.3f}" for v in numbers), f"{edge:.1%}")
    return table


def _problem_text(report: Report) -> Text:
    if not report.problems:
        return Text("no problems found", style="green")
    lines = [f"{len(report.problems)} problems found:"]
    for text, names in report.problems.items():
        shown = ", ".join(names[:NAMES_SHOWN]) + (
            f", ... ({len(names)} in all)" if len(names) > NAMES_SHOWN else ""
        )
        lines.append(f"- {text}" + (f" [{shown}]" if shown else ""))
    return Text("\n".join(lines), style="red")


def contact_sheet(path: str | Path, out: str | Path, demos: int = 6, frames: int = 8) -> bool:
    """Write a PNG: a row for each of ``demos`` demonstrations and each camera, ``frames`` columns.

    Returns False, writing nothing, when the file has no readable images. Raises ConfigError where
    the PNG cannot be written, one of H5_FAULTS where the images cannot be read.
    """
    rows: list[np.ndarray] = []
    with DemoFile(path) as file:
        for number in _spread(len(file.names), demos):
            name = file.names[number]
            for key in file.obs_keys(name):
                if key.endswith("_image"):
                    rows.append(_row(file, name, key.removesuffix("_image"), frames))
    if not rows:
        return False
    width = max(r.shape[1] for r in rows)
    padded = [np.pad(r, ((0, 2), (0, width - r.shape[1]), (0, 0))) for r in rows]
    try:
        with atomic_write(out) as temp:
            imageio.imwrite(temp, np.concatenate(padded), format="png")
    except OSError as error:
        raise ConfigError(f"out: '{out}' cannot be written ({error.strerror or error})") from error
    return True


def _row(file: DemoFile, name: str, camera: str, count: int) -> np.ndarray:
    steps = _spread(file.length(name), count)
    frames = file.images(name, camera, steps).transpose(0, 2, 3, 1)
    label = f"{name} {camera}"
    return np.concatenate(
        [_labelled(f, f"t={t}" if t else label) for f, t in zip(frames, steps, strict=True)],
        axis=1,
    )


def _labelled(frame: np.ndarray, text: str) -> np.ndarray:
    strip = Image.new("RGB", (frame.shape[1], 12))
    ImageDraw.Draw(strip).text((1, 0), text, fill=(255, 255, 255))
    return np.concatenate([np.asarray(strip), frame])


PICTURES = Annotated[int, Between(0, 1000)]


def parser() -> Options:
    """The command line."""
    p = Options(description=__doc__.split("\n")[0])
    p.add_argument("file", help="HDF5 file of demonstrations")
    p.add_argument("--out", default="", help="contact sheet (default: FILE_sheet.png)")
    p.add_argument(
        "--demos",
        type=numeric(PICTURES),
        default=6,
        help="demonstrations on the sheet; 0: no sheet",
    )
    p.add_argument(
        "--frames", type=numeric(Annotated[int, Between(1, 1000)]), default=8, help="frames of each"
    )
    return p


def main(args: Sequence[str] | None = None) -> int:
    """Entry point; the exit status is described above."""
    options = parser().parse_args(args)
    report = inspect(options.file)
    console().print(Text(str(report.path), style="bold"), soft_wrap=True)
    # key names must not be cut, even when the output is a pipe of 80 columns
    Console(width=max(110, console().width)).print(render(report))
    out = options.out or str(Path(options.file).with_suffix("")) + "_sheet.png"
    try:
        if options.demos and contact_sheet(options.file, out, options.demos, options.frames):
            console().print(f"contact sheet: {out}", soft_wrap=True)
    except ConfigError as error:
        if options.out:
            raise
        # a data folder may be read-only; the file is not at fault
        console().print(
            f"no contact sheet: {error}; --out FILE.png puts it elsewhere", soft_wrap=True
        )
    except (*H5_FAULTS, DatasetError) as error:
        console().print(Text(f"no contact sheet: {error}", style="red"))
        return 1
    return 1 if report.problems else 0


if __name__ == "__main__":
    sys.exit(run_program(main))
