"""Percentiles of any number of durations, in memory that does not grow."""

from __future__ import annotations

import math
from collections import Counter

_RATIO = math.log(1.005)  # neighbouring counts differ by half a percent
_SMALLEST = 1e-6  # seconds


class Latencies:
    """Counts durations in steps of half a percent, from a microsecond on."""

    def __init__(self) -> None:
        self._counts: Counter[int] = Counter()

    def __len__(self) -> int:
        return self._counts.total()

    def add(self, seconds: float) -> None:
        """Count one duration."""
        self._counts[round(math.log(max(seconds, _SMALLEST) / _SMALLEST) / _RATIO)] += 1

    def merge(self, others: Latencies) -> None:
        """Count those of ``others`` as well."""
        self._counts.update(others._counts)

    def percentile(self, percent: float) -> float:
        """Seconds that ``percent`` of the durations do not exceed, to half a percent; needs one."""
        rank, seen = math.ceil(len(self) * percent / 100), 0
        for step in sorted(self._counts):
            seen += self._counts[step]
            if seen >= rank:
                return _SMALLEST * math.exp(step * _RATIO)
        raise ValueError("no durations were counted")

    def report(self) -> str:
        """ "1000 requests: p50 1.2 ms, p95 1.5 ms, p99 3.1 ms"."""
        if not len(self):
            return "no requests"
        shown = (f"p{p} {self.percentile(p) * 1e3:.3g} ms" for p in (50, 95, 99))
        return f"{len(self)} requests: {', '.join(shown)}"
