"""Starts the trials of a sweep in order, as far as the engine has room, until all have ended."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from common_utils.errors import ConfigError
from common_utils.folder_lock import holder_of
from common_utils.run_state import GracefulStop
from launch.attempt import Outcome, is_finished
from launch.engines.base import Engine, Handle
from launch.progress import Row, State
from launch.trial import Trial

POLL = 0.2  # seconds
LOST = (State.FAILED, State.BLOCKED, State.STOPPED)


def rows_of(trials: Sequence[Trial], sweep: Path) -> dict[str, Row]:
    """A row of each trial; those that have finished before are found.

    Raises ConfigError if a trial that has not finished is running elsewhere.
    """
    rows = {}
    for trial in trials:
        row = rows[trial.name] = Row(trial)
        if is_finished(sweep, trial):
            row.state, row.note = State.FINISHED, "before"
            row.refresh()
        elif holder := holder_of(Path(trial.folder)):
            raise ConfigError(
                f"{trial.folder}: in use by {holder}; expected nobody: wait until it "
                "ends, or stop it"
            )
    return rows


class Schedule:
    """The trials of a sweep and their engine.

    most: trials at a time, 0 as many as the engine has room for. show: called with the rows now
    and then.
    """

    def __init__(
        self,
        rows: Mapping[str, Row],
        engine: Engine,
        most: int,
        show: Callable[[Mapping[str, Row]], None],
    ) -> None:
        self.rows, self.engine, self.most, self.show = rows, engine, most, show
        self.running: dict[str, Handle] = {}

    def run(self) -> str:
        """Until every trial has ended; after a signal until those that run have saved their state.

        Returns the signal's name, "" if there was none.
        """
        with GracefulStop() as stop:
            while True:
                if stop.requested:
                    self._stop()
                self._collect()
                if not stop.requested:
                    self._start()
                self.show(self.rows)
                if not self.running and (stop.requested or not self._left()):
                    return stop.signal_name
                time.sleep(POLL)

    def _left(self) -> list[Row]:
        return [row for row in self.rows.values() if row.state is State.WAITING]

    def _start(self) -> None:
        """Submit what is ready, together: a cluster makes one array of it."""
        chosen: list[Row] = []
        for row in self._left():
            if self._is_blocked(row) or not self._is_ready(row):
                continue
            if self.most and len(self.running) + len(chosen) >= self.most:
                break
            beside = [self.rows[name].trial for name in self.running] + [r.trial for r in chosen]
            if not self.most and not self.engine.has_cores(row.trial, beside):
                break
            if not self.engine.has_memory(row.trial, beside):
                break
            chosen.append(row)
        if chosen:
            handles = self.engine.submit([row.trial for row in chosen])
            for row, handle in zip(chosen, handles, strict=True):
                row.state = State.RUNNING
                self.running[row.trial.name] = handle

    def _is_ready(self, row: Row) -> bool:
        return all(self.rows[name].state is State.FINISHED for name in row.trial.needs)

    def _is_blocked(self, row: Row) -> bool:
        lost = [name for name in row.trial.needs if self.rows[name].state in LOST]
        if lost:
            row.state, row.note = State.BLOCKED, f"needs {lost[0]}"
        return bool(lost)

    def _collect(self) -> None:
        for name, handle in list(self.running.items()):
            row = self.rows[name]
            row.refresh()
            if (outcome := handle.poll()) is not None:
                del self.running[name]
                row.outcome = outcome
                row.state = _state_after(outcome)
                row.refresh()

    def _stop(self) -> None:
        for handle in self.running.values():
            handle.stop()


def _state_after(outcome: Outcome) -> State:
    if outcome.status == 0:
        return State.FINISHED
    return State.STOPPED if outcome.stopped else State.FAILED
