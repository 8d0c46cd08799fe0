"""A sample of every kind of hostile case, always the same; long runs: python -m tests.fuzz."""

from __future__ import annotations

import mmap
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

from common_utils.errors import UserError
from tests.fuzz import runner
from tests.fuzz.case import Case, Trial, Verdict, judge_message
from tests.fuzz.runner import generators, run_kind

# kills are in test_kills.py: they need a process without threads
KINDS = {kind: module for kind, module in generators().items() if kind != "kills"}
CASES = {
    "weights": 120,
    "configs": 80,
    "runs": 18,
    "hdf5": 80,
    "folders": 20,
    "xml": 80,
    "bindings": 200,
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_sample_without_a_fault(kind: str) -> None:
    tally = run_kind(KINDS[kind], seed=0, cases=CASES.get(kind, 100))
    assert not tally.faults, "\n".join(map(str, tally.faults[:5]))
    assert tally.counts[Verdict.REFUSED] and tally.cases == CASES.get(kind, 100)


# ---------------------------------------------------------------- the harness itself


def hang(_: Path) -> str | None:
    while True:
        time.sleep(0.01)


def spin(_: Path) -> str | None:
    while True:
        pass


def stuck(_: Path) -> str | None:
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGALRM])
    return hang(_)


def die(_: Path) -> str | None:
    os.kill(os.getpid(), signal.SIGSEGV)
    return None


def grab(_: Path) -> str | None:
    """New address space: of free memory that the parent still holds, a case may have more."""
    return None if mmap.mmap(-1, 2**33) else ""


def refuse(_: Path) -> str | None:
    raise UserError("x.yaml: no")


def long_refusal(_: Path) -> str | None:
    raise UserError("x.yaml\n" * 4)


def vague_refusal(_: Path) -> str | None:
    raise UserError("no")


def fail(_: Path) -> str | None:
    raise KeyError("x")


def accept(_: Path) -> str | None:
    return None


def accept_in_silence(_: Path) -> str | None:
    return "5"


Call = Callable[[Path], str | None]
EXPECTED: dict[Call, Verdict] = {
    hang: Verdict.HANG, spin: Verdict.HANG, stuck: Verdict.HANG,
    die: Verdict.CRASH, grab: Verdict.TRACEBACK,
    refuse: Verdict.REFUSED, long_refusal: Verdict.TRACEBACK, vague_refusal: Verdict.TRACEBACK,
    fail: Verdict.TRACEBACK, accept: Verdict.ACCEPTED, accept_in_silence: Verdict.SILENT,
}  # fmt: skip


@pytest.mark.parametrize("call", EXPECTED)
def test_what_becomes_of_a_case_is_noticed(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    """Short limits only where they are the point: a busy machine is no hang."""
    if call in (hang, spin, stuck):
        monkeypatch.setattr(runner, "TIME_LIMIT", 30.0 if call is spin else 0.5)
        monkeypatch.setattr(runner, "CPU_LIMIT", 0.5)
        monkeypatch.setattr(runner, "GRACE", 1.0)

    def cases(_: random.Random) -> Iterator[Case]:
        yield Trial("x", call, names=("x.yaml",))

    tally = run_kind(module_of(cases), 1, cases=1)
    assert dict(tally.counts) == {EXPECTED[call]: 1}


def module_of(cases: object) -> ModuleType:
    module = ModuleType("x")
    module.__dict__.update(KIND="x", cases=cases)
    return module


def test_cases_after_a_death_are_run_and_the_same_each_time() -> None:
    def cases(rng: random.Random) -> Iterator[Case]:
        number = rng.randrange(3)
        yield Trial(str(number), [die, refuse, fail][number], names=("x.yaml",))

    first, again = (run_kind(module_of(cases), 5, cases=12) for _ in range(2))
    assert first.counts == again.counts and first.cases == 12 and len(first.counts) == 3
    assert [fault.number for fault in first.faults] == [fault.number for fault in again.faults]


def test_a_generator_that_fails_is_noticed() -> None:
    def cases(_: random.Random) -> Iterator[Case]:
        yield from [][1]

    with pytest.raises(RuntimeError, match="x 0, seed 5: the generator gave no case"):
        run_kind(module_of(cases), 5, cases=3)


def test_messages_are_judged() -> None:
    assert judge_message("a.pt: torn", ["a.pt"]).verdict is Verdict.REFUSED
    assert judge_message("torn", ["a.pt"]).verdict is Verdict.TRACEBACK
    assert judge_message("a.pt\n\n\n\n", ["a.pt"]).verdict is Verdict.TRACEBACK
    assert judge_message("").verdict is Verdict.TRACEBACK
