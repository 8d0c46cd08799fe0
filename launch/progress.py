"""How far the trials of a sweep are, from what they have written."""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from common_utils.records import METRICS, read_metrics
from launch.attempt import Outcome
from launch.trial import Trial


class State(Enum):
    """What has become of a trial; the value is for people."""

    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"
    FAILED = "failed"
    STOPPED = "interrupted"
    BLOCKED = "not run"


@dataclass
class Row:
    """A trial's line in the table. score: its newest evaluation. wall: seconds that it has run."""

    trial: Trial
    state: State = State.WAITING
    outcome: Outcome | None = None
    note: str = ""
    step: int = 0
    score: float | None = None
    wall: float = 0.0
    _seen: tuple[int, int] = (0, 0)

    def refresh(self) -> None:
        """Read what the run has logged since, if anything."""
        path = Path(self.trial.folder, METRICS)
        try:
            facts = os.stat(path)
        except OSError:
            return
        if (seen := (facts.st_mtime_ns, facts.st_size)) == self._seen:
            return
        self._seen = seen
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            records = read_metrics(path)
        if records:
            self._take(records)

    def _take(self, records: list[dict[str, Any]]) -> None:
        self.step = records[-1]["step"]
        self.wall = float(records[-1].get("wall") or 0)
        scores = [r["score/score"] for r in records if "score/score" in r]
        self.score = scores[-1] if scores else None

    @property
    def seconds_left(self) -> float | None:
        """An estimate from the run's own pace; None before its first record."""
        if self.state is not State.RUNNING or not self.step or not self.trial.steps:
            return None
        return max(0, self.trial.steps - self.step) * self.wall / self.step
