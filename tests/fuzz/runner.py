"""Runs cases in forked children, so that a hang, a death or a leak costs one case."""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import importlib
import json
import os
import pkgutil
import resource
import select
import signal
import sys
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import IO, Any

import torch

import tests.fuzz
from tests.fuzz.case import Case, Outcome, Verdict, brief, generator_of

CPU_LIMIT = 20.0  # s of the processor's time, one case
TIME_LIMIT = 90.0  # s, one case: a busy machine is slow, and no case waits for so long
GRACE = 5.0  # s, in which a child that was interrupted may still answer
MEMORY_LIMIT = 3 * 2**30  # bytes of address space beyond what the parent has
CASES_PER_CHILD = 400
KEPT_FAULTS = 200  # in the report


@dataclass
class Fault:
    """A case that ended as none may; ``--kind K --seed S --only N`` repeats it."""

    number: int
    name: str
    verdict: str
    detail: str


@dataclass
class Tally:
    """What became of the cases of one kind."""

    kind: str
    seed: int
    seconds: float = 0.0
    counts: Counter[Verdict] = field(default_factory=Counter)
    faults: list[Fault] = field(default_factory=list)
    numbers: Counter[str] = field(default_factory=Counter)  # what else cases count

    @property
    def cases(self) -> int:
        return sum(self.counts.values())

    def add(self, number: int, name: str, outcome: Outcome) -> None:
        self.counts[outcome.verdict] += 1
        self.numbers.update(outcome.numbers)
        if outcome.verdict.is_fault:
            self.faults.append(Fault(number, name, outcome.verdict.value, outcome.detail))

    def as_json(self) -> dict[str, Any]:
        counts = {verdict.value: self.counts[verdict] for verdict in Verdict}
        return {
            "kind": self.kind, "seed": self.seed, "cases": self.cases, **self.numbers, **counts,
            "seconds": round(self.seconds, 1),
            "faults": [vars(fault) for fault in self.faults[:KEPT_FAULTS]],
        }  # fmt: skip


def generators() -> dict[str, ModuleType]:
    """The generators of this package by their kind."""
    found = {}
    for info in pkgutil.iter_modules(tests.fuzz.__path__):
        if not info.name.startswith(("test_", "_")):
            module = importlib.import_module(f"tests.fuzz.{info.name}")
            if hasattr(module, "KIND"):
                found[module.KIND] = module
    return found


def case_of(module: ModuleType, seed: int, number: int) -> Case:
    """The case of that number."""
    cases: Iterator[Case] = module.cases(generator_of(seed, module.KIND, number))
    return next(cases)


def run_kind(
    module: ModuleType, seed: int, *, first: int = 0, cases: int = sys.maxsize,
    seconds: float = float("inf"),
) -> Tally:  # fmt: skip
    """Cases ``first``, ``first + 1``, ... until there are ``cases`` or the time is over."""
    tally = Tally(module.KIND, seed)
    began = time.monotonic()
    if prepare := getattr(module, "prepare", None):
        prepare()
    number, end = first, first + cases
    while number < end and time.monotonic() - began < seconds:
        last, before = min(end, number + CASES_PER_CHILD), number
        deadline = began + seconds
        for name, outcome in _in_child(module, seed, number, last, deadline):
            tally.add(number, name, outcome)
            number += 1
        tally.seconds = time.monotonic() - began
        if number == before and tally.seconds < seconds:
            raise RuntimeError(f"{module.KIND} {number}, seed {seed}: the generator gave no case")
    return tally


# ---------------------------------------------------------------- the parent's side


def _in_child(
    module: ModuleType, seed: int, first: int, last: int, deadline: float
) -> Iterator[tuple[str, Outcome]]:
    """Outcomes of the cases from ``first`` on, in order, until ``last``, the time or a death."""
    reading, writing = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Python 3.12: fork beside threads
        pid = os.fork()
    if pid == 0:
        os.close(reading)
        _child(module, seed, first, last, deadline, writing)
    os.close(writing)
    try:
        yield from _outcomes(reading, pid)
    finally:
        os.close(reading)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, 0)


def _outcomes(reading: int, pid: int) -> Iterator[tuple[str, Outcome]]:
    """What the child writes: a line with the case's name, then one with its outcome."""
    buffer, name = b"", None
    while True:
        ready, _, _ = select.select([reading], [], [], TIME_LIMIT + GRACE)
        if not ready:
            os.kill(pid, signal.SIGKILL)
            yield name or "?", Outcome(Verdict.HANG, f"no answer in {TIME_LIMIT + GRACE:g} s")
            return
        data = os.read(reading, 1 << 16)
        if not data:
            break
        *lines, buffer = (buffer + data).split(b"\n")
        for line in lines:
            message = json.loads(line)
            if "outcome" in message:
                verdict, detail = Verdict(message["outcome"]), message["detail"]
                yield str(name), Outcome(verdict, detail, message["numbers"])
                name = None
            else:
                name = message["name"]
    if name is not None:
        _, status = os.waitpid(pid, 0)
        yield name, Outcome(Verdict.CRASH, _how_it_died(status))


def _how_it_died(status: int) -> str:
    if os.WIFSIGNALED(status):
        return f"died of {signal.Signals(os.WTERMSIG(status)).name}"
    return f"left with status {os.waitstatus_to_exitcode(status)}"


# ---------------------------------------------------------------- the child's side


class TooSlow(BaseException):
    """Not an Exception: nothing on the way may swallow it."""


def _child(
    module: ModuleType, seed: int, first: int, last: int, deadline: float, writing: int
) -> None:
    try:
        _limit_memory()
        _be_quiet()
        torch.set_num_threads(1)  # OpenMP's threads exist in the parent alone
        signal.signal(signal.SIGALRM, _too_slow)
        signal.signal(signal.SIGPROF, _too_slow)
        with open(writing, "w", encoding="utf-8") as out:
            for number in range(first, last):
                if time.monotonic() >= deadline:
                    break
                _one(module, seed, number, out)
    finally:
        os._exit(0)


def _one(module: ModuleType, seed: int, number: int, out: IO[str]) -> None:
    case = case_of(module, seed, number)
    print(json.dumps({"name": case.name}), file=out, flush=True)
    outcome = _guarded(case)
    message = {
        "outcome": outcome.verdict.value, "detail": outcome.detail[:2000],
        "numbers": outcome.numbers,
    }  # fmt: skip
    print(json.dumps(message), file=out, flush=True)
    gc.collect(0)


def _guarded(case: Case) -> Outcome:
    """The case under two alarms; what escapes it is a fault of it."""
    _set_alarms(TIME_LIMIT, CPU_LIMIT)
    try:
        return case.run()
    except TooSlow as error:
        limits = f"over {CPU_LIMIT:g} s of CPU or {TIME_LIMIT:g} s"
        return Outcome(Verdict.HANG, f"{limits}: {brief(error)}")
    except BaseException as error:
        return Outcome(Verdict.TRACEBACK, brief(error))
    finally:
        _set_alarms(0, 0)


def _set_alarms(time_limit: float, cpu_limit: float) -> None:
    """Interrupt after so many seconds, or seconds of this process's CPU time; 0: never."""
    signal.setitimer(signal.ITIMER_REAL, time_limit)
    signal.setitimer(signal.ITIMER_PROF, cpu_limit)


def _too_slow(*_: object) -> None:
    raise TooSlow


def _limit_memory() -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * os.sysconf("SC_PAGE_SIZE") + MEMORY_LIMIT
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _be_quiet() -> None:
    """What programs print is dropped, tracebacks of crashes too; what they read is empty."""
    faulthandler.disable()
    warnings.simplefilter("ignore")
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
