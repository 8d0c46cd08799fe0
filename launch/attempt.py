"""One start of a trial's program, on whichever machine: its process, its log, its record.

Below the sweep's folder ``logs/NAME.log`` has what the program printed, and ``records/NAME.json``
how it ended. Engines differ only in where an attempt is made.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from common_utils.atomic import atomic_json, make_folder
from common_utils.errors import UserError
from common_utils.folder_lock import holder_of
from common_utils.plain_file import read_small_text
from launch import child
from launch.programs import PROGRAMS
from launch.trial import Trial

LOGS, RECORDS = "logs", "records"
MAX_RECORD = 1 << 20  # bytes
FREE_WITHIN = 60.0  # seconds in which an attempt that was cut off must have left the folder


class Outcome(NamedTuple):
    """How an attempt ended: the program's exit status (negative: the signal that ended it), whether
    it had been asked to stop, and what the engine says of it, if anything."""

    status: int
    stopped: bool = False
    why: str = ""

    def describe(self) -> str:
        """In words."""
        if self.why:
            return self.why
        if self.status < 0:
            return f"ended by {signal.Signals(-self.status).name}"
        return f"exit status {self.status}"


class Attempt:
    """A running program.

    given: ``common_utils.elsewhere.variables`` of the process of the sweep; None: nothing is given.
    """

    def __init__(
        self, trial: Trial, sweep: Path, given: Mapping[str, str | None] | None = None
    ) -> None:
        self.trial, self.sweep = trial, sweep
        self.started = time.time()
        self._stopped = False
        program = [PROGRAMS[trial.program].file, *trial.options, "--resume=1"]
        command = [sys.executable, "-S", child.__file__, str(os.getpid()), *program]
        log = make_folder(sweep / LOGS) / f"{trial.name}.log"
        with open(log, "ab") as output:
            shown = shlex.join([sys.executable, *program])
            when = time.strftime("%Y-%m-%d %H:%M:%S")
            output.write(f"=== {when}, {socket.gethostname()}: {shown}\n".encode())
            output.flush()
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=_env(given)
            )
        self._write(None)

    def poll(self) -> Outcome | None:
        """None while it runs."""
        status = self._process.poll()
        if status is None:
            return None
        outcome = Outcome(status, self._stopped)
        self._write(outcome)
        return outcome

    @property
    def process(self) -> int:
        """Its number."""
        return self._process.pid

    def stop(self) -> None:
        """Ask the program to save its state and end."""
        if not self._stopped:
            self._stopped = True
            self._process.send_signal(signal.SIGTERM)

    def _write(self, outcome: Outcome | None) -> None:
        now = time.time()
        record = {
            "trial": self.trial.name,
            "digest": self.trial.digest,
            "status": None if outcome is None else outcome.status,
            "stopped": outcome is not None and outcome.stopped,
            "host": socket.gethostname(),
            "process": self.process,
            "started": time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self.started)),
            "seconds": round(now - self.started, 1),
        }
        atomic_json(record, record_path(self.sweep, self.trial))


def _env(given: Mapping[str, str | None] | None) -> dict[str, str]:
    env = dict(os.environ)
    for name, value in (given or {}).items():
        env.pop(name, None)
        if value is not None:
            env[name] = value
    return env


def run_to_end(
    trial: Trial,
    sweep: Path,
    given: Mapping[str, str | None],
    attempts: list[Attempt] | None = None,
) -> Outcome:
    """Make an attempt and wait for it; KeyboardInterrupt stops it gracefully.

    attempts: gets the attempt, for those who stop it otherwise. Raises UserError if the trial's
    folder stays in use by another process.
    """
    wait_until_free(Path(trial.folder))
    attempt = Attempt(trial, sweep, given)
    if attempts is not None:
        attempts.append(attempt)
    while True:
        try:
            if (outcome := attempt.poll()) is not None:
                return outcome
            time.sleep(0.1)
        except KeyboardInterrupt:
            attempt.stop()


def wait_until_free(folder: Path, within: float = FREE_WITHIN) -> None:
    """Wait for a process that still saves its state in the folder; UserError if it does not end."""
    end = time.monotonic() + within
    while holder := holder_of(folder):
        if time.monotonic() > end:
            raise UserError(f"{folder}: in use by {holder}, expected to be free")
        time.sleep(0.2)


# ------------------------------------------------------------------------- what is left behind


def record_path(sweep: Path, trial: Trial) -> Path:
    """The file of a trial's record."""
    return sweep / RECORDS / f"{trial.name}.json"


def read_record(sweep: Path, trial: Trial) -> dict[str, Any]:
    """The record of a trial's newest attempt, {} if there is none that can be read."""
    try:
        found = json.loads(read_small_text(record_path(sweep, trial), MAX_RECORD))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def is_finished(sweep: Path, trial: Trial) -> bool:
    """Whether the trial has run to its end with the configuration that it has now, and its weights
    are still there."""
    record = read_record(sweep, trial)
    done = record.get("status") == 0 and record.get("digest") == trial.digest
    return done and Path(trial.folder, "latest.pt").is_file()


def last_lines(sweep: Path, trial: Trial, count: int = 5) -> list[str]:
    """The last lines that a trial printed which are not empty."""
    path = sweep / LOGS / f"{trial.name}.log"
    try:
        with open(path, "rb") as file:
            file.seek(max(0, path.stat().st_size - 8192))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return []
    return [line for line in lines if line.strip() and not line.startswith("=== ")][-count:]
