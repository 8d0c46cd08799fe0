"""The interface of loggers: programs that show a run's numbers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar


@dataclass(frozen=True)
class RunInfo:
    """What a logger gets to know of the run."""

    save_dir: Path
    # of the run, also after it is resumed; "" for runs of earlier versions
    run_id: str = ""
    # the parts of save_dir that RunConfig names
    project: str = ""
    name: str = ""
    group: str = ""
    config: Mapping[str, Any] = field(default_factory=dict)
    # whether the run continues from a saved state
    resumed: bool = False


class Sink(ABC):
    """A logger. Its constructor runs before the run has written anything: it raises a ConfigError
    if the package, a login or the network is missing. An error in any other method turns the logger
    off with a warning, and training goes on.
    """

    # the product's name, for messages
    NAME: ClassVar[str]

    @abstractmethod
    def open(self, before: Sequence[Mapping[str, Any]]) -> None:
        """Begin to record. The folder is ready now.

        Args:
            before: what ``metrics.jsonl`` holds, empty for a fresh run. A resumed run's records
                from after its state have been removed; the logger must not keep them either.
        """

    @abstractmethod
    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        """Record numbers at a step; several records may have the same step."""

    def flush(self) -> None:  # noqa: B027  (most have nothing to do)
        """Called before each state of the run is saved; raises if records were lost."""

    @abstractmethod
    def close(self) -> None:
        """Called once, at the end."""


def in_one_line(error: BaseException) -> str:
    """The error's text in one line, for messages."""
    return " ".join(str(error).split())[:200] or type(error).__name__
