"""The live table of a sweep; where nobody watches a terminal, a line for each change."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from types import TracebackType

from rich.live import Live
from rich.table import Table

from common_utils.progress import console, format_seconds
from launch.progress import Row, State

# in the order of the table
ORDER = (
    State.RUNNING, State.FAILED, State.STOPPED, State.WAITING, State.BLOCKED, State.FINISHED,
)  # fmt: skip
STYLES = {
    State.RUNNING: "bold", State.FAILED: "red", State.BLOCKED: "red", State.STOPPED: "yellow",
    State.FINISHED: "green",
}  # fmt: skip
SUMMARY_EVERY = 60.0  # seconds between lines that no change causes
REFRESH = 0.5  # seconds between pictures of the table


def summary(rows: Mapping[str, Row]) -> str:
    """``3 finished, 2 running, 5 waiting of 10 trials``."""
    counts = [(s, sum(row.state is s for row in rows.values())) for s in reversed(ORDER)]
    return f"{', '.join(f'{n} {s.value}' for s, n in counts if n)} of {len(rows)} trials"


def cells(row: Row) -> tuple[str, ...]:
    """Trial, state, step, score, time left."""
    steps = f"{row.step:,} / {row.trial.steps:,}" if row.trial.steps else f"{row.step:,}"
    score = "" if row.score is None else f"{row.score:.4g}"
    left = row.seconds_left
    state = f"{row.state.value} {row.note}".strip()
    return row.trial.name, state, steps, score, "" if left is None else format_seconds(left)


def table(rows: Mapping[str, Row], most: int) -> Table:
    """Up to ``most`` rows, those that change first."""
    made = Table(title=summary(rows), title_justify="left")
    for head in ("trial", "state", "step", "score", "left"):
        numbers = head in ("step", "score", "left")
        made.add_column(head, justify="right" if numbers else "left", overflow="fold")
    ordered = sorted(rows.values(), key=lambda row: ORDER.index(row.state))
    for row in ordered[:most]:
        made.add_row(*cells(row), style=STYLES.get(row.state, ""))
    if len(ordered) > most:
        made.caption = f"and {len(ordered) - most} more"
    return made


class Display:
    """Shows rows as they change.

    with Display(rows) as display: display(rows)
    """

    def __init__(self, rows: Mapping[str, Row]) -> None:
        self._live: Live | None = None
        self._shown: dict[str, State] = {}
        self._last = time.monotonic()
        if console().is_terminal:
            picture = table(rows, self._most)
            self._live = Live(picture, console=console(), auto_refresh=False, transient=True)

    @property
    def _most(self) -> int:
        return max(3, console().height - 7)

    def __call__(self, rows: Mapping[str, Row]) -> None:
        """Show what is new."""
        now = time.monotonic()
        if self._live is None:
            self._print_changes(list(rows.values()))
            if now - self._last >= SUMMARY_EVERY:
                self._last = now
                _say(summary(rows))
        elif now - self._last >= REFRESH:
            self._last = now
            self._live.update(table(rows, self._most), refresh=True)

    def _print_changes(self, rows: Sequence[Row]) -> None:
        for row in rows:
            name = row.trial.name
            if row.state is not self._shown.get(name, State.WAITING):
                self._shown[name] = row.state
                score = "" if row.score is None else f", score {row.score:.4g}"
                _say(f"{name}: {row.state.value} {row.note}".rstrip() + score)

    def __enter__(self) -> Display:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        if self._live is not None:
            self._live.stop()


def _say(line: str) -> None:
    console().print(line, markup=False, highlight=False)
