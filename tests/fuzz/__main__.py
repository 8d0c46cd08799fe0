"""Hostile cases by the thousand, for as long as is asked for.

    python -m tests.fuzz --minutes 30 [--kind weights] [--seed 1] [--out fuzz.json]
    python -m tests.fuzz --kind weights --seed 1 --only 123      repeats one case, in this process

Prints and stores, per kind: cases, accepted, refused, tracebacks, hangs, crashes, silent
acceptances, seconds, and the faults with their numbers. Exit status 1 if there is a fault.
"""

from __future__ import annotations

import argparse
import platform
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

from common_utils.atomic import atomic_json
from common_utils.errors import UserError, run_program
from common_utils.resources import cpu_name
from tests.fuzz.case import Verdict
from tests.fuzz.runner import Tally, case_of, generators, run_kind


def main(argv: list[str] | None = None) -> int:
    kinds = generators()
    parser = argparse.ArgumentParser(prog="tests.fuzz", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--minutes", type=float, default=2.0, help="all kinds together")
    parser.add_argument("--kind", choices=sorted(kinds), action="append", help="default: all")
    parser.add_argument("--cases", type=int, default=sys.maxsize, help="of each kind, at most")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--only", type=int, default=None, help="repeat the case of this number")
    parser.add_argument("--out", type=Path, default=None, help="report, JSON")
    args = parser.parse_args(argv)
    if not 0 < args.minutes < float("inf"):
        raise UserError(f"--minutes: expected a number above 0, got {args.minutes}")
    chosen = [kinds[kind] for kind in args.kind or sorted(kinds)]
    if args.only is not None:
        return repeat(chosen, args.seed, args.only)
    tallies: list[Tally] = []
    for module in chosen:
        seconds = args.minutes * 60 / len(chosen)
        limits = {"first": args.first, "cases": args.cases, "seconds": seconds}
        tallies.append(run_kind(module, args.seed, **limits))
        show(tallies[-1])
        if args.out is not None:
            atomic_json(report(tallies, args.first), args.out)
    return 1 if any(tally.faults for tally in tallies) else 0


def repeat(modules: list[ModuleType], seed: int, number: int) -> int:
    """One case of each kind, without a child: its traceback and debugger are here."""
    bad = False
    for module in modules:
        case = case_of(module, seed, number)
        print(f"{module.KIND} {number}: {case.name}", flush=True)
        outcome = case.run()
        bad |= outcome.verdict.is_fault
        print(f"  {outcome.verdict.value}: {outcome.detail}")
    return int(bad)


def show(tally: Tally) -> None:
    counts = ", ".join(f"{tally.counts[verdict]} {verdict.value}" for verdict in Verdict)
    more = "".join(f", {number} {name}" for name, number in tally.numbers.items())
    print(f"{tally.kind}: {tally.cases} cases in {tally.seconds:.0f} s: {counts}{more}", flush=True)
    for fault in tally.faults[:20]:
        print(f"  {fault.verdict} {fault.number}: {fault.name}: {fault.detail[:600]}", flush=True)


def report(tallies: list[Tally], first: int) -> dict[str, Any]:
    return {
        "command": " ".join(["python -m tests.fuzz", *sys.argv[1:]]),
        "date": time.strftime("%Y-%m-%d %H:%M"),
        "cpu": cpu_name(),
        "python": platform.python_version(),
        "first": first,
        "kinds": [tally.as_json() for tally in tallies],
    }


if __name__ == "__main__":
    sys.exit(run_program(main))
