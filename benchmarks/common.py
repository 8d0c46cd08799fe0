"""Shared by all benchmarks: timing, records, the command line, the table.

A benchmark is a module with a ``main`` that measures cases into a :class:`Report`::

    python -m benchmarks.replay --json replay.json

Timing is the median over repeats; each repeat makes enough calls to last a while. Process CPU
time is compared, since other load hardly affects it; wall time is recorded too.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from common_utils.atomic import atomic_json
from common_utils.options import Options, numeric
from common_utils.ranges import Workers
from common_utils.resources import cpu_name
from networks import fast


@dataclass(frozen=True)
class Timing:
    """Milliseconds per call, medians over repeats."""

    cpu_ms: float
    wall_ms: float
    calls: int


def measure(
    call: Callable[[], Any],
    *,
    repeats: int = 5,
    min_seconds: float = 0.2,
    warmup: int = 2,
    max_calls: int = 100_000,
) -> Timing:
    """Time ``call()``: medians of ``repeats`` runs of at least ``min_seconds`` each."""
    for _ in range(warmup):
        call()
    begin = time.perf_counter()
    call()
    once = max(time.perf_counter() - begin, 1e-7)
    calls = int(min(max_calls, max(1, min_seconds / once)))
    cpu, wall = [], []
    for _ in range(repeats):
        cpu0, wall0 = time.process_time(), time.perf_counter()
        for _ in range(calls):
            call()
        cpu.append((time.process_time() - cpu0) / calls)
        wall.append((time.perf_counter() - wall0) / calls)
    return Timing(1e3 * statistics.median(cpu), 1e3 * statistics.median(wall), calls)


@dataclass(frozen=True)
class Record:
    """One number. ``ratio`` above 1: better than ``reference`` (lower is better by default)."""

    case: str
    metric: str
    value: float
    unit: str
    threads: int
    reference: float | None = None
    ratio: float | None = None


class Report:
    """Collects records, prints each as it comes, writes them all as JSON."""

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self.records: list[Record] = []

    def add(
        self,
        case: str,
        metric: str,
        value: float,
        unit: str,
        reference: float | None = None,
        *,
        higher_is_better: bool = False,
        threads: int | None = None,
    ) -> Record:
        """Record one number, compared with ``reference`` in the same unit if there is one."""
        ratio = None
        if reference is not None and value > 0:
            ratio = value / reference if higher_is_better else reference / value
        used = self.threads if threads is None else threads
        record = Record(case, metric, float(value), unit, used, reference, ratio)
        self.records.append(record)
        print(_row(record), flush=True)
        return record

    def add_timing(
        self, case: str, timing: Timing, reference_ms: float | None = None, **kwargs: Any
    ) -> None:
        """Record process CPU time (compared) and wall time of one case."""
        self.add(case, "cpu_time", timing.cpu_ms, "ms", reference_ms, **kwargs)
        self.add(case, "wall_time", timing.wall_ms, "ms", **kwargs)

    def write(self, path: str | None) -> None:
        """Write the list of records as JSON, if a path was given."""
        if path:
            atomic_json([asdict(r) for r in self.records], path)
            print(f"wrote {path}")


def _row(r: Record) -> str:
    text = f"{r.case:<44} {r.metric:<22} {r.value:>12.4g} {r.unit:<10} {r.threads} thread(s)"
    if r.ratio is not None:
        text += f"  reference {r.reference:.4g}  ratio {r.ratio:.2f}"
    return text


def parser(description: str | None) -> argparse.ArgumentParser:
    """The options every benchmark has: --json, --threads, --quick."""
    p = Options(description=description)
    p.add_argument("--json", metavar="FILE", help="write the records to FILE")
    p.add_argument("--threads", type=numeric(Workers), default=1, help="torch threads (default 1)")
    p.add_argument("--quick", action="store_true", help="a smoke run: few, short repeats")
    return p


def start(args: argparse.Namespace) -> Report:
    """Set the thread count, print the machine and versions, and start a report."""
    fast.set_up(args.threads)
    print(
        f"{cpu_name()}, {os.cpu_count()} CPUs, {args.threads} thread(s); "
        f"torch {torch.__version__}, numpy {np.__version__}, Python {platform.python_version()}"
    )
    return Report(args.threads)


def timing_options(args: argparse.Namespace) -> dict[str, Any]:
    """Keyword arguments for :func:`measure` that follow --quick."""
    return {"repeats": 2, "min_seconds": 0.01, "warmup": 1} if args.quick else {}


def run(main: Callable[[Report, argparse.Namespace], None], doc: str | None) -> None:
    """Entry point of a benchmark that has only the common options."""
    args = parser(doc).parse_args()
    report = start(args)
    main(report, args)
    report.write(args.json)


def median(values: Sequence[float]) -> float:
    """Median as float."""
    return float(statistics.median(values))
