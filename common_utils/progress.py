"""A progress bar with the time left and the numbers that matter; plain lines when piped."""

from __future__ import annotations

import time
from functools import lru_cache
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn


@lru_cache(maxsize=1)
def console() -> Console:
    """The one console of the process: lines printed here do not tear the progress bar."""
    return Console(soft_wrap=True)


def format_seconds(seconds: float) -> str:
    """``42 s``, ``12 min 03 s``, ``3 h 05 min``."""
    seconds = round(max(0.0, seconds))
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60:02d} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60:02d} min"


def pace(per_second: float, step: int, total: int) -> str:
    """A line that says how fast an RL run is and how long it will take."""
    return (
        f"{per_second:.1f} environment steps per second (evaluation included): "
        f"about {format_seconds((total - step) / per_second)} left for {total} steps"
    )


class RunProgress:
    """Progress of ``total`` steps, of which ``initial`` are done (a resumed run).

    On a terminal a bar; elsewhere one line every ``line_every`` seconds. The rate, and so
    the time left, counts only the steps of this process.

        with RunProgress(200_000, "IBRL") as progress:
            progress.update(step, score=0.9, sps=41.0)
    """

    def __init__(self, total: int, name: str, initial: int = 0, line_every: float = 30.0) -> None:
        if total < 0 or not 0 <= initial <= max(total, initial):
            raise ValueError(f"RunProgress: bad total {total} or initial {initial}")
        self.total, self.name, self.initial = total, name, initial
        self.line_every = line_every
        self.step = initial
        self._start = self._last_line = time.monotonic()
        self._last_bar = 0.0
        self._bar: Progress | None = None
        if console().is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TextColumn("{task.fields[tail]}"),
                console=console(),
                refresh_per_second=4,
                transient=False,
            )
            self._task = self._bar.add_task(name, total=total, completed=initial, tail="")

    @property
    def rate(self) -> float:
        """Steps per second of this process, 0 before the first."""
        elapsed = time.monotonic() - self._start
        return (self.step - self.initial) / elapsed if elapsed > 0 else 0.0

    @property
    def seconds_left(self) -> float | None:
        """An estimate, None before the first step."""
        return (self.total - self.step) / self.rate if self.rate > 0 else None

    def _tail(self, numbers: dict[str, float]) -> str:
        left = self.seconds_left
        parts = [f"{format_seconds(left)} left"] if left is not None else []
        parts += [f"{k} {v:.4g}" for k, v in numbers.items()]
        return ", ".join(parts)

    def update(self, step: int, **numbers: float) -> None:
        """Steps done so far and the numbers to show (cheap; may be called every step)."""
        self.step = step
        now = time.monotonic()
        if self._bar is not None:
            if now - self._last_bar >= 0.2 or step >= self.total:
                self._last_bar = now
                self._bar.update(self._task, completed=step, tail=self._tail(numbers))
        elif now - self._last_line >= self.line_every:
            self._last_line = now
            line = f"{self.name} {step}/{self.total}, {self._tail(numbers)}"
            console().print(line, markup=False, highlight=False)

    def __enter__(self) -> RunProgress:
        self._start = self._last_line = time.monotonic()
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
