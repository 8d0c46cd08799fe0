"""What a run records: console lines, ``train.log``, ``metrics.jsonl``, and loggers."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import torch

from common_utils import records
from common_utils.atomic import make_folder
from common_utils.errors import UserError
from common_utils.finite import NonFiniteError
from common_utils.loggers.sink import Sink, in_one_line
from common_utils.loggers.tensorboard import TensorBoard
from common_utils.loggers.wandb import ID_FILE
from common_utils.progress import console

Number = float | int | torch.Tensor


@dataclass(frozen=True)
class Meter:
    """Summary of one key: mean is sum / count, min and max over single appends."""

    mean: float
    min: float
    max: float
    count: float


class _Accumulator:
    """Sum, min, max, count of a key; device tensors wait unread in ``pending``."""

    CHUNK = 256  # tensors held before they are reduced on their device

    def __init__(self) -> None:
        self.total = 0.0
        self.low, self.high = math.inf, -math.inf
        self.count = 0.0
        self.pending: list[torch.Tensor] = []
        self.reduced: list[torch.Tensor] = []  # float64 [sum, min, max, index of the first bad]
        self.steps: list[list[int]] = [[]]  # of each reduced chunk, then of pending
        self.bad: tuple[int, float] | None = None  # the first bad number, and its step

    def append(self, value: Number, count: float, step: int) -> None:
        self.count += count
        if not isinstance(value, torch.Tensor):
            value = float(value)
            if self.bad is None and not math.isfinite(value):
                self.bad = step, value
            self.total += value
            self.low, self.high = min(self.low, value), max(self.high, value)
            return
        if value.numel() != 1:
            raise ValueError(f"a meter takes single numbers, got a tensor {list(value.shape)}")
        if self.pending and self.pending[0].device != value.device:
            # values that a resumed run restored are on the CPU
            self.pending = [v.to(value.device) for v in self.pending]
        self.pending.append(value.detach().reshape(()))
        self.steps[-1].append(step)
        if len(self.pending) == self.CHUNK:
            self.reduced.append(self._reduce(self.pending))
            self.pending = []
            self.steps.append([])

    @staticmethod
    def _reduce(values: list[torch.Tensor]) -> torch.Tensor:
        stacked = torch.stack(values).double()
        # NaN and infinity propagate through sum, min and max
        place = stacked.isfinite().logical_not().double().argmax().double()
        return torch.stack([stacked.sum(), stacked.min(), stacked.max(), place])

    def device_stats(self) -> torch.Tensor | None:
        """float64 [n, 4] of the tensors so far, still on their device."""
        parts = self.reduced + ([self._reduce(self.pending)] if self.pending else [])
        return torch.stack([part.to(parts[-1].device) for part in parts]) if parts else None

    def summary(self, stats: list[list[float]]) -> Meter:
        total, low, high = self.total, self.low, self.high
        for part_sum, part_min, part_max, _ in stats:
            total, low, high = total + part_sum, min(low, part_min), max(high, part_max)
        return Meter(total / self.count if self.count else math.nan, low, high, self.count)

    def first_bad(self, stats: list[list[float]]) -> tuple[int, float] | None:
        """Step and value of the first NaN or infinity, None if there is none."""
        for (part_sum, part_min, part_max, place), steps in zip(stats, self.steps, strict=False):
            if not math.isfinite(part_sum):
                value = next((x for x in (part_min, part_max) if not math.isfinite(x)), part_sum)
                bad = steps[int(place)], value
                return bad if self.bad is None or bad[0] < self.bad[0] else self.bad
        return self.bad

    def state_dict(self) -> dict[str, Any]:
        # pending is not reduced: that would change the order of later sums
        return {
            "total": self.total,
            "low": self.low,
            "high": self.high,
            "count": self.count,
            "pending": [v.clone() for v in self.pending],
            "reduced": [part[:3] for part in self.reduced],
        }

    def load_state_dict(self, state: Mapping[str, Any], step: int) -> None:
        self.total, self.count = state["total"], state["count"]
        self.low, self.high = state["low"], state["high"]
        # saved values are finite, so their exact steps are never needed
        self.pending = list(state["pending"])
        self.reduced = [torch.cat([part, part.new_zeros(1)]) for part in state["reduced"]]
        self.steps = [[step]] * len(self.reduced) + [[step] * len(self.pending)]


class MultiCounter:
    """Mean, min and max per key between summaries (docs/reference/ibrl.md#training).

    Tensors (scalars, any device) are kept detached and unread; the host waits for the device
    once per :meth:`summary` or :meth:`check_finite`, not once per metric.

    step: the training step of the values appended next; set by the trainer.
    """

    def __init__(self) -> None:
        self._keys: dict[str, _Accumulator] = {}
        self.step = 0

    def append(self, key: str, value: Number, count: float = 1) -> None:
        """Add ``value`` to the sum of ``key`` and ``count`` to its number of entries."""
        self._keys.setdefault(key, _Accumulator()).append(value, count, self.step)

    def update(self, values: Mapping[str, Number]) -> None:
        """Append each entry of a dict."""
        for key, value in values.items():
            self.append(key, value)

    def __len__(self) -> int:
        return len(self._keys)

    def summary(self, reset: bool = True) -> dict[str, Meter]:
        """All meters, by sorted key; then resets them unless ``reset`` is False."""
        host = self._read()
        out = {k: self._keys[k].summary(host.get(k, [])) for k in sorted(self._keys)}
        if reset:
            self._keys.clear()
        return out

    def check_finite(self) -> None:
        """Raise NonFiniteError if a number since the last summary is NaN or infinite. The message
        names the key, step and value of the first."""
        host = self._read()
        found = ((key, a.first_bad(host.get(key, []))) for key, a in self._keys.items())
        bad = {key: place for key, place in found if place is not None}
        if bad:
            key = min(bad, key=lambda k: bad[k][0])
            step, value = bad[key]
            raise NonFiniteError(
                f"step {step}: {key} is {value}: training has diverged; what was saved before "
                "is kept"
            )

    def _read(self) -> dict[str, list[list[float]]]:
        """The statistics of all tensors so far, by key."""
        stats = {k: s for k, a in self._keys.items() if (s := a.device_stats()) is not None}
        return dict(zip(stats, _to_host(list(stats.values())), strict=True))

    def state_dict(self) -> dict[str, Any]:
        return {k: a.state_dict() for k, a in self._keys.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._keys = {}
        for key, value in state.items():
            self._keys[key] = _Accumulator()
            self._keys[key].load_state_dict(value, self.step)


def _to_host(stats: list[torch.Tensor]) -> list[list[list[float]]]:
    """Read [n_i, 4] tensors with one transfer per device."""
    out: list[list[list[float]]] = [[] for _ in stats]
    for device in {s.device for s in stats}:
        index = [i for i, s in enumerate(stats) if s.device == device]
        rows = torch.cat([stats[i] for i in index]).tolist()
        for i in index:
            out[i], rows = rows[: len(stats[i])], rows[len(stats[i]) :]
    return out


def _made_room(path: Path) -> list[str]:
    """Set aside what blocks a log's name, or put a copy in the place of a link; notes say so."""
    notes, folder = [], path.name == records.EVENTS
    if path.is_symlink() and path.is_file() and not folder:
        records.replace_link(path)
        notes.append(f"{path}: was a link, is a copy of its file now")
    fits = path.is_file() if not folder else path.is_dir() and not path.is_symlink()
    if os.path.lexists(path) and not (fits and os.access(path, os.W_OK)):
        aside = records.set_aside(path)
        notes.append(f"{path}: cannot be written to, set aside as {aside.name}")
    return notes


def _is_at(file: IO[str], path: Path) -> bool:
    """Whether the open file is the one at ``path``, itself and not through a link."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.lstat(path))
    except (FileNotFoundError, NotADirectoryError):
        return False


class RunLogger:
    """Writes a run's lines and numbers to ``save_dir``; use as a context manager.

    ``train.log``: everything printed with :meth:`print`, and the error if the run fails.
    ``metrics.jsonl``: one ``{"step": int, "wall": seconds, key: number, ...}`` per
    :meth:`log`, flushed at once. ``tb/``: TensorBoard. ``sinks``: further loggers of the same
    numbers, which are closed with the log. One that fails is turned off, and a line says so.

    ``resume_step``: the step of the saved state to continue from; None starts new files.
    ``saved``: that state's :meth:`state_dict`. Entries that a killed run wrote after that state
    are removed. A log that cannot be written to (a folder of that name, a damaged file) is set
    aside: it never prevents resuming.
    """

    def __init__(
        self,
        save_dir: str | os.PathLike[str],
        *,
        sinks: Sequence[Sink] = (),
        resume_step: int | None = None,
        saved: Mapping[str, Any] | None = None,
        quiet: bool = False,
    ) -> None:
        self.save_dir = make_folder(save_dir)
        self.quiet = quiet
        self.meters = MultiCounter()
        self._wall_before = 0.0
        self._start = time.monotonic()
        self.metrics_path = self.save_dir / records.METRICS
        self.log_path = self.save_dir / "train.log"
        notes = self._make_room()
        if resume_step is None:
            self.metrics_path.unlink(missing_ok=True)
            records.remove_events(self.save_dir)
        else:
            notes += self._cut_back(resume_step, saved or {})
        append = "a" if resume_step is not None else "w"
        # lines may contain file names that are not text
        self._text = open(
            self.log_path, append, buffering=1, encoding="utf-8", errors="backslashreplace"
        )
        self._metrics = open(self.metrics_path, "a", buffering=1, encoding="utf-8")
        for note in notes:
            self.print(note)
        # for states of earlier versions, TensorBoard itself skips what came later
        by_step = resume_step is not None and "files" not in (saved or {})
        purge = resume_step + 1 if resume_step is not None and by_step else None
        self._sinks: list[Sink] = [TensorBoard(self.save_dir, purge), *sinks]
        before = records.read_metrics(self.metrics_path) if sinks else []
        self._each(lambda sink: sink.open(before))

    def _make_room(self) -> list[str]:
        """Set aside whatever blocks a log's name, and put copies in the place of links, which in
        somebody else's folder lead anywhere; returns notes that say so."""
        files = (self.metrics_path, self.log_path, self.save_dir / ID_FILE)
        paths = (*files, self.save_dir / records.EVENTS)
        return [note for path in paths for note in _made_room(path)]

    def _cut_back(self, step: int, saved: Mapping[str, Any]) -> list[str]:
        wall = saved.get("wall")
        until = float(wall) if isinstance(wall, (int, float)) else math.inf
        return records.cut_back(self.save_dir, saved.get("files"), step, until)

    @property
    def wall(self) -> float:
        """Seconds that this run has taken, including those before a resume."""
        return self._wall_before + time.monotonic() - self._start

    def print(self, line: str = "") -> None:
        """Print one or more lines to the console and to ``train.log``."""
        if not self.quiet:
            console().print(line, markup=False, highlight=False, soft_wrap=True)
        self._text.write(line + "\n")

    def log(self, step: int, values: Mapping[str, Number]) -> dict[str, float]:
        """Record numbers at a step in every log; returns them as floats."""
        numbers = {k: float(v) for k, v in values.items()}
        record = {k: _json_number(v) for k, v in numbers.items()}
        line = {"step": int(step), "wall": round(self.wall, 3), **record}
        self._metrics.write(json.dumps(line, allow_nan=False) + "\n")
        self._each(lambda sink: sink.log(int(step), numbers))
        return numbers

    def _each(self, do: Callable[[Sink], None]) -> None:
        """Do something with each logger. None of them is worth the end of a training."""
        for sink in list(self._sinks):
            try:
                do(sink)
            except Exception as error:  # of another program: a full disk, a lost network, a bug
                self._sinks.remove(sink)
                self.print(
                    f"warning: {sink.NAME}: {in_one_line(error)}; the run goes on without it"
                )

    def summarize(self, step: int, extra: Mapping[str, Number] | None = None) -> dict[str, float]:
        """Log the meters' means (and ``extra``), print the table, reset the meters."""
        meters = self.meters.summary()
        numbers = self.log(step, {**{k: m.mean for k, m in meters.items()}, **(extra or {})})
        self.print(f"step {step}, {self.wall:.0f} s")
        width = max((len(k) for k in numbers), default=0)
        for key in sorted(numbers):
            meter = meters.get(key)
            spread = f"  [{meter.min:.4g}, {meter.max:.4g}]" if meter and meter.count > 1 else ""
            self.print(f"  {key:<{width}}  {numbers[key]:.5g}{spread}")
        return numbers

    def state_dict(self) -> dict[str, Any]:
        """Meters, wall time and the files' lengths, for resume."""
        self._each(lambda sink: sink.flush())
        self._reopen_metrics()
        return {
            "meters": self.meters.state_dict(),
            "wall": self.wall,
            "files": records.position(self.save_dir),
        }

    def _reopen_metrics(self) -> None:
        """If the file was removed or replaced meanwhile (an editor does that), later records go to
        the one that is there now instead of nowhere."""
        if _is_at(self._metrics, self.metrics_path) or not _is_at(self._text, self.log_path):
            return  # without its log, the folder is another run's now
        what = "replaced" if os.path.lexists(self.metrics_path) else "removed"
        notes = _made_room(self.metrics_path)
        self._metrics.close()
        self._metrics = open(self.metrics_path, "a", buffering=1, encoding="utf-8")
        notes.append(f"{self.metrics_path}: was {what} while the run was writing to it")
        for note in notes:
            self.print(note)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.meters.load_state_dict(state["meters"])
        self._wall_before = float(state["wall"])
        self._start = time.monotonic()

    def close(self) -> None:
        """Flush and close everything; safe to call twice."""
        self._each(lambda sink: sink.close())
        self._sinks = []
        self._text.close()
        self._metrics.close()

    def __enter__(self) -> RunLogger:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if isinstance(error, UserError):
            self._text.write(f"error: {error}\n")
        elif error is not None and not isinstance(error, SystemExit):
            import traceback

            self._text.write("".join(traceback.format_exception(kind, error, trace)))
        self.close()


def _json_number(value: float) -> float | int | None:
    """JSON has no NaN or infinity: both become null."""
    if not math.isfinite(value):
        return None
    return int(value) if value.is_integer() and abs(value) < 2**53 else value
