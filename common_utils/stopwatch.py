"""Measures how the time of a loop divides into named sections."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Stopwatch:
    """Adds up wall time per named section: ``with watch("env"): ...``."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start

    def move(self, old: str, new: str, seconds: float) -> None:
        """Move ``seconds`` from section ``old`` to section ``new``."""
        if seconds > 0:
            self.seconds[old] = self.seconds.get(old, 0.0) - seconds
            self.seconds[new] = self.seconds.get(new, 0.0) + seconds

    def shares(self) -> dict[str, float]:
        """Fraction of the measured time per section, largest first."""
        total = sum(self.seconds.values()) or 1.0
        return {k: v / total for k, v in sorted(self.seconds.items(), key=lambda kv: -kv[1])}

    def report(self) -> str:
        """One line, such as ``update 71 %, act 14 %, env 9 %``."""
        return ", ".join(f"{k} {100 * v:.0f} %" for k, v in self.shares().items())

    def state_dict(self) -> dict[str, float]:
        """For resume."""
        return dict(self.seconds)

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Inverse of :meth:`state_dict`."""
        self.seconds = dict(state)
