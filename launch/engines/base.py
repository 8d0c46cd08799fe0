"""What an engine is: it starts trials somewhere, and says when they have ended."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from launch.attempt import Outcome
from launch.trial import Trial


class Handle(Protocol):
    """A trial that was given to an engine."""

    def poll(self) -> Outcome | None:
        """None until it has ended."""

    def stop(self) -> None:
        """Ask it to save its state and end; it may not have begun."""


class Engine(ABC):
    """Base of the engines.

    sweep: the sweep's folder, which every machine reaches by the same path. settings: of the
    engine itself, by name (``--engine_option NAME=VALUE``). Raises UserError if the engine cannot
    be used.
    """

    # names of the settings, and what they are
    SETTINGS: Mapping[str, str] = {}

    def __init__(self, sweep: Path, settings: Mapping[str, str]) -> None:
        self.sweep, self.settings = sweep, settings

    @abstractmethod
    def submit(self, trials: Sequence[Trial]) -> list[Handle]:
        """Start these trials now, or queue them."""

    def has_cores(self, trial: Trial, beside: Sequence[Trial]) -> bool:
        """Whether there are cores for a trial beside those that run; a cluster has a queue."""
        return True

    def has_memory(self, trial: Trial, beside: Sequence[Trial]) -> bool:
        """Whether there is memory for it, likewise."""
        return True

    def close(self) -> None:
        """Free what the engine holds, if anything; nothing runs any more."""
        return
