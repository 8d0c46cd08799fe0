"""This machine: trials are child processes, as many as its cores allow."""

from __future__ import annotations

import os
from collections.abc import Sequence

from launch.attempt import Attempt
from launch.engines.base import Engine, Handle
from launch.trial import Trial


class LocalEngine(Engine):
    """Child processes of the sweep."""

    def submit(self, trials: Sequence[Trial]) -> list[Handle]:
        """Start them."""
        return [Attempt(trial, self.sweep) for trial in trials]

    def fits(self, trial: Trial, beside: Sequence[Trial]) -> bool:
        """Whether there are cores for it; a trial that needs more than there are runs alone."""
        cores = len(os.sched_getaffinity(0))
        return not beside or trial.cores + sum(other.cores for other in beside) <= cores
