"""Alternate variants of the same calls in one run, and report each one's speed-up over the first.

Each variant runs in its own process, because memory allocation and the matrix library are settings
of a process. They take turns: only one call of one variant runs at a time.
"""

from __future__ import annotations

import multiprocessing as mp
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from common_utils.atomic import atomic_json
from common_utils.resources import cpu_name
from networks import fast
from networks.fast import choice, products, table

LEAST_SECONDS = 0.2  # of one turn


@dataclass(frozen=True)
class Variant:
    """A way to compute the same calls.

    eager: compute as the original program does (``benchmarks.eager``).
    backends: backends of ``networks.fast``; None: all of them.
    env: environment variables of its process.
    precision: arithmetic of an energy network; None: float32.
    """

    eager: bool = False
    backends: tuple[str, ...] | None = None
    env: dict[str, str] = field(default_factory=dict)
    precision: str | None = None


# (case, variant) -> name -> a call to measure
MakeCalls = Callable[[str, Variant], dict[str, Callable[[], Any]]]
VARIANTS = {
    "eager": Variant(eager=True, backends=("plain",), env={"IBRL_MALLOC": "system"}),
    "plain": Variant(backends=("plain",)),
    "mkl": Variant(env={"IBRL_GEMM": "mkl"}),
    "onednn": Variant(env={"IBRL_GEMM": "onednn"}),
    "auto": Variant(env={"IBRL_GEMM": "auto"}),
}


@dataclass(frozen=True)
class Compared:
    """One variant of one call: process CPU and wall milliseconds, over all turns.

    ratio: the first variant's median CPU time divided by this one's.
    gflop: 10^9 operations of its matrix products and convolutions, counted where torch computes
    them (so an actor's step counts all critics, of which kernels go back through the smallest);
    0: not counted.
    """

    case: str
    call: str
    variant: str
    cpu_ms: float
    cpu_ms_least: float
    cpu_ms_most: float
    wall_ms: float
    ratio: float
    turns: int
    gflop: float


class _Player:
    """A variant's process."""

    def __init__(self, variant: Variant, make: MakeCalls, case: str, threads: int) -> None:
        context = mp.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        args = (theirs, variant, make, case, threads)
        self.process = context.Process(target=_play, args=args, daemon=True)
        self.process.start()
        theirs.close()
        self.names: list[str] = self._answer()

    def turn(self, name: str) -> tuple[float, float]:
        """CPU and wall milliseconds of a call."""
        self.pipe.send(name)
        return self._answer()

    def gflop(self, name: str) -> float:
        """10^9 operations of a call."""
        self.pipe.send((name,))
        return self._answer()

    def _answer(self) -> Any:
        try:
            answer = self.pipe.recv()
        except EOFError:
            raise RuntimeError("a variant's process died") from None
        if isinstance(answer, Exception):
            raise answer
        return answer

    def close(self) -> None:
        """End the process."""
        self.pipe.close()
        self.process.join()


def _play(pipe: Connection, variant: Variant, make: MakeCalls, case: str, threads: int) -> None:
    os.environ.update(variant.env)
    if variant.backends is not None:
        table.BACKENDS = variant.backends
    try:
        fast.set_up(threads)
        torch.manual_seed(0)
        calls = make(case, variant)
        pipe.send(list(calls))
        while True:
            asked = pipe.recv()
            pipe.send(_count(calls[asked[0]]) if isinstance(asked, tuple) else _time(calls[asked]))
    except EOFError:  # the pipe was closed
        return
    except Exception as error:
        pipe.send(error)


def _count(call: Callable[[], Any]) -> float:
    backends, table.BACKENDS = table.BACKENDS, ("plain",)
    try:
        table.rows.cache_clear()
        with FlopCounterMode(display=False) as counter:
            call()
        return counter.get_total_flops() / 1e9
    finally:
        table.BACKENDS = backends
        table.rows.cache_clear()


def dense_rate() -> float:
    """10^9 operations per second of CPU time: two 1024 x 1024 matrices, by the fastest library."""
    a, best = torch.randn(1024, 1024), float("inf")
    libraries = [name for name in choice.PRODUCTS if products.available(name)]
    for _ in range(10):
        for library in libraries:
            began = time.process_time()
            products.product(library, a, a)
            best = min(best, time.process_time() - began)
    return 2 * 1024**3 / best / 1e9


def _time(call: Callable[[], Any]) -> tuple[float, float]:
    cpu, wall, calls = time.process_time(), time.perf_counter(), 0
    while calls == 0 or time.perf_counter() - wall < LEAST_SECONDS:
        call()
        calls += 1
    return (
        1e3 * (time.process_time() - cpu) / calls,
        1e3 * (time.perf_counter() - wall) / calls,
    )


def compare(
    case: str,
    variants: Mapping[str, Variant],
    make: MakeCalls,
    turns: int,
    threads: int,
    counted: bool = False,
) -> list[Compared]:
    """Time every call of ``case`` by every variant, ``turns`` times, alternating.

    counted: count operations as well; energy networks' kernels have no form that could be counted.
    """
    players: dict[str, _Player] = {}
    try:
        for name, variant in variants.items():
            players[name] = _Player(variant, make, case, threads)
        found = []
        for call in next(iter(players.values())).names:
            times: dict[str, list[tuple[float, float]]] = {name: [] for name in variants}
            for _ in range(turns + 1):  # the first is a warm-up
                for name in variants:
                    times[name].append(players[name].turn(call))
            gflop = {n: player.gflop(call) if counted else 0.0 for n, player in players.items()}
            found += _compared(case, call, times, gflop)
        return found
    finally:
        for player in players.values():
            player.close()


def _compared(
    case: str, call: str, times: dict[str, list[tuple[float, float]]], gflop: dict[str, float]
) -> list[Compared]:
    cpu = {name: [t[0] for t in turns[1:]] for name, turns in times.items()}
    first = statistics.median(next(iter(cpu.values())))
    return [
        Compared(
            case=case,
            call=call,
            variant=name,
            cpu_ms=(median := statistics.median(mine)),
            cpu_ms_least=min(mine),
            cpu_ms_most=max(mine),
            wall_ms=statistics.median(t[1] for t in times[name][1:]),
            ratio=first / median,
            turns=len(mine),
            gflop=gflop[name],
        )
        for name, mine in cpu.items()
    ]


def show(rows: Sequence[Compared]) -> None:
    """Print a line per variant of each call."""
    for r in rows:
        what = f"{r.case}: {r.call}"
        print(
            f"{what:<52} {r.variant:<10} {r.cpu_ms:>9.2f} ms ({r.cpu_ms_least:.2f} to "
            f"{r.cpu_ms_most:.2f})  {r.ratio:.2f} x"
            + (f"  {1e3 * r.gflop / r.cpu_ms:.0f} GFLOP/s" if r.gflop else ""),
            flush=True,
        )


def write(path: str | None, rows: Sequence[Compared], threads: int, command: str) -> None:
    """Write the rows as JSON, with the CPU, the software and the command."""
    if path is None:
        return
    atomic_json(
        {
            "cpu": cpu_name(),
            "cpus": os.cpu_count(),
            "threads": threads,
            "torch": torch.__version__,
            "command": command,
            "unit": "ms of process CPU time, median over turns",
            "dense_gflop_per_s": dense_rate(),
            "rows": [vars(r) for r in rows],
        },
        path,
    )
