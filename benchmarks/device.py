"""Check and measure the program on an accelerator, part by part, in at most eight minutes.

    benchmarks/device_check.sh [--device cuda] [--out device_check] [--seconds 480]
    benchmarks/device_check.sh --device cpu --quick

Each part runs in a process of its own with a time limit: one that fails, hangs or crashes is
recorded and the others still run. ``device.json`` in the folder has the machine, and of each part
its status, seconds and results (also those it had before it was stopped); ``device.log`` has all
that was printed. Exit status 1 if a part did not end well.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import torch

from benchmarks.device_parts import PARTS, Task
from common_utils.atomic import atomic_json, make_folder
from common_utils.device import resolve_device
from common_utils.errors import run_program
from common_utils.options import Options, numeric
from common_utils.ranges import Positive
from common_utils.resources import cpu_name

ROOT = Path(__file__).resolve().parents[1]
RESULTS, LOG = "device.json", "device.log"
EIGHT_MINUTES = 480  # seconds; with more, each part has more
LEAST = 5  # seconds: a part with less time left is not started


def machine(device: torch.device) -> dict[str, Any]:
    """The CPU, the software, and the card with its driver."""
    found: dict[str, Any] = {
        "cpu": cpu_name(),
        "cpus": os.cpu_count(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "device": str(device),
    }
    if device.type == "cuda":
        card = torch.cuda.get_device_properties(device)
        found["card"] = card.name
        found["memory_bytes"] = card.total_memory
        found["capability"] = f"{card.major}.{card.minor}"
        found["cuda"] = torch.version.cuda
        found["driver"] = _driver()
    return found


def _driver() -> str:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"unknown: {error}"
    return done.stdout.strip() if done.returncode == 0 else f"unknown: {done.stderr.strip()}"


@dataclass
class Outcome:
    """How one part ended: ok, failed, timed out, or not run."""

    status: str
    seconds: float = 0.0
    reason: str = ""
    results: Any = None


def run_part(name: str, seconds: float, args: argparse.Namespace, log: TextIO) -> Outcome:
    """Run a part in a new process, for at most so many seconds."""
    results = Path(args.out) / f"{name}.json"
    results.unlink(missing_ok=True)
    command = [
        sys.executable, "-m", "benchmarks.device", "--part", name, "--device", args.device,
        "--out", args.out, "--until", str(time.monotonic() + seconds),
        *(["--quick"] if args.quick else []),
    ]  # fmt: skip
    log.write(f"\n===== {name}: at most {seconds:.0f} s\n")
    log.flush()
    where = log.tell()
    began = time.monotonic()
    process = subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
    )
    try:
        status = process.wait(seconds)
        outcome = Outcome("ok") if status == 0 else Outcome("failed", reason=_end_of(log, where))
        if status < 0:
            outcome.reason = f"ended by {signal.Signals(-status).name}"
    except subprocess.TimeoutExpired:
        outcome = Outcome("timed out", reason=f"stopped after {seconds:.0f} s")
    finally:
        _end(process)
    outcome.seconds = round(time.monotonic() - began, 1)
    if results.exists():  # also those of a part that was stopped
        outcome.results = json.loads(results.read_text())
        results.unlink()
    return outcome


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a part and the programs that it started."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    process.wait()


def _end_of(log: TextIO, where: int) -> str:
    """The last line that a part printed, which names its error."""
    log.flush()
    with open(log.name, encoding="utf-8", errors="replace") as f:
        f.seek(where)
        lines = [line.strip() for line in f if line.strip()]
    return lines[-1] if lines else "it printed nothing"


def check(args: argparse.Namespace, command: str) -> int:
    """Run all parts; exit status 0 if every one ended well."""
    began = time.monotonic()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # ends the part too
    report: dict[str, Any] = {
        "command": command, "quick": args.quick, **machine(torch.device(args.device)), "parts": {},
    }  # fmt: skip
    file, log_file = make_folder(args.out) / RESULTS, Path(args.out) / LOG
    print(", ".join(f"{k} {v}" for k, v in report.items() if k not in ("command", "parts")))
    with open(log_file, "a", encoding="utf-8") as log:
        for name in args.only or PARTS:
            left = args.seconds - (time.monotonic() - began)
            if left < LEAST:
                outcome = Outcome("not run", reason="no time is left")
            else:
                limit = PARTS[name].seconds * max(1.0, args.seconds / EIGHT_MINUTES)
                outcome = run_part(name, min(left, limit), args, log)
            report["parts"][name] = vars(outcome)
            atomic_json(report, file)  # after each part: an interrupted check keeps the others
            reason = f": {outcome.reason}" if outcome.reason else ""
            print(f"{name:<8} {outcome.status}, {outcome.seconds:.0f} s{reason}", flush=True)
    print(f"results in {file}, what was printed in {log_file}")
    return 0 if all(p["status"] == "ok" for p in report["parts"].values()) else 1


def _part(args: argparse.Namespace) -> int:
    """One part, in its own process; exit status 1 if any of it failed."""
    file = Path(args.out) / f"{args.part}.json"
    task = Task(args.device, args.quick, args.until)
    results: dict[str, Any] = {}
    for name, value in PARTS[args.part].run(task):
        results[name] = value
        print(f"{name}: {value}", flush=True)
        atomic_json(results, file)
    failed = [k for k, v in results.items() if "error" in v]
    if failed:
        print(f"{failed[0]}: {results[failed[0]]['error']}")
    return 1 if failed else 0


def options() -> Options:
    """The command line's options."""
    parser = Options(description=__doc__)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--out", default=os.environ.get("OUT") or "device_check", help="a folder")
    parser.add_argument("--quick", action="store_true", help="a smoke run: tiny sizes")
    parser.add_argument(
        "--seconds",
        type=numeric(Positive),
        default=EIGHT_MINUTES,
        help="for all parts together",
    )
    parser.add_argument("--only", action="append", choices=list(PARTS), help="only these parts")
    # of the processes of the parts
    parser.add_argument("--part", choices=list(PARTS), help=argparse.SUPPRESS)
    parser.add_argument("--until", type=float, default=float("inf"), help=argparse.SUPPRESS)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Command line."""
    args = options().parse_args(argv)
    args.device = str(resolve_device(args.device, "--device"))
    if args.part:
        return _part(args)
    return check(args, shlex.join(["python", "-m", "benchmarks.device", *(argv or sys.argv[1:])]))


if __name__ == "__main__":
    sys.exit(run_program(main))
