"""This machine: trials are child processes, as many as its cores and its memory allow."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from common_utils.progress import console
from common_utils.resources import available_memory, format_bytes
from launch.attempt import Attempt
from launch.engines.base import Engine, Handle
from launch.needs import memory_of, own_memory
from launch.trial import Trial

USABLE = 0.95  # of the memory that is free


class LocalEngine(Engine):
    """Child processes of the sweep."""

    def __init__(self, sweep: Path, settings: Mapping[str, str]) -> None:
        super().__init__(sweep, settings)
        self._attempts: dict[str, Attempt] = {}
        self._memory: dict[str, int] = {}  # by the trial's shape

    def submit(self, trials: Sequence[Trial]) -> list[Handle]:
        """Start them."""
        started = {trial.name: Attempt(trial, self.sweep) for trial in trials}
        self._attempts |= started
        return list(started.values())

    def has_cores(self, trial: Trial, beside: Sequence[Trial]) -> bool:
        """Whether there are cores for it; a trial that needs more than there are runs alone."""
        cores = len(os.sched_getaffinity(0))
        return not beside or trial.cores + sum(other.cores for other in beside) <= cores

    def has_memory(self, trial: Trial, beside: Sequence[Trial]) -> bool:
        """Whether there is memory for it, and for what the others will still take. One that runs
        alone is not held back: its program refuses what does not fit."""
        if not beside:
            return True
        wanted = self._wanted(trial) + sum(self._growth(other) for other in beside)
        return wanted <= USABLE * available_memory()

    def _growth(self, trial: Trial) -> int:
        attempt = self._attempts.get(trial.name)
        has = own_memory(attempt.process) if attempt else 0
        return max(0, self._wanted(trial) - has)

    def _wanted(self, trial: Trial) -> int:
        if trial.shape not in self._memory:
            self._memory[trial.shape] = found = memory_of(trial)
            if found:
                line = f"{trial.name}: about {format_bytes(found)} of memory"
                console().print(line, markup=False, highlight=False)
        return self._memory[trial.shape]
