"""Attempts at a run in forked children, which die where a plan says.

The parent has imported the programs and has only one thread; each child runs a program's ``main``
as its script does, with options of its own.
"""

from __future__ import annotations

import builtins
import contextlib
import functools
import io
import os
import resource
import signal
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from common_utils.errors import UserError, run_program

# what changes files, or is called around such changes
CALLS = ("open", "fsync", "replace", "rename", "unlink", "mkdir", "rmdir", "truncate", "ftruncate")
How = Literal["before", "after", "write", "time"]
DEADLY = (signal.SIGKILL, signal.SIGXFSZ)


@dataclass(frozen=True)
class Kill:
    """Where an attempt dies.

    before, after: around the call that lies at ``share`` of an unkilled run's calls.
    write: from that call on in the middle of the first write that makes a file longer than
        ``size`` bytes; what fits is on disk then.
    time: at ``share`` of an unkilled run's time, from outside.
    """

    how: How
    share: float  # in [0, 1)
    size: int = 0

    def __str__(self) -> str:
        more = f" {self.size} B" if self.how == "write" else ""
        return f"{self.how} {self.share:.3f}{more}"


@dataclass(frozen=True)
class Attempt:
    """What became of one: status None if it was killed; ``said``: all that it printed."""

    status: int | None
    said: str
    calls: int  # 0 if it was killed
    seconds: float


def only_one_thread() -> None:
    """Refuse to fork beside threads: their locks and pools would be missing in the children."""
    threads = len(os.listdir("/proc/self/task"))
    if threads > 1:
        raise UserError(f"kills: {threads} threads in this process, expected 1: OMP_NUM_THREADS=1")


def attempt(
    program: ModuleType, options: Sequence[str], log: Path, kill: Kill | None, whole: Attempt | None
) -> Attempt:
    """Run ``program`` once, to its end or to where ``kill`` says; ``whole``: the unkilled run."""
    began = time.monotonic()
    counted = log.with_name("calls")
    counted.unlink(missing_ok=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pid = os.fork()
    if pid == 0:
        _child(program, options, log, kill, whole)
    try:
        if kill is not None and kill.how == "time":
            assert whole is not None
            time.sleep(kill.share * whole.seconds)
            os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
    except BaseException:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        raise
    seconds = time.monotonic() - began
    said = log.read_text(errors="replace") if log.exists() else ""
    calls = int(counted.read_text()) if counted.exists() else 0
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) in DEADLY and kill is not None:
        return Attempt(None, said, calls, seconds)
    return Attempt(os.waitstatus_to_exitcode(status), said, calls, seconds)


# ---------------------------------------------------------------- the child's side


def _child(
    program: ModuleType, options: Sequence[str], log: Path, kill: Kill | None, whole: Attempt | None
) -> None:
    status = 1
    try:
        out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(out, 1)
        os.dup2(out, 2)
        for number in (signal.SIGALRM, signal.SIGXFSZ):
            signal.signal(number, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        sys.argv = [f"{program.__name__}.py", *options]
        with _Calls(kill, whole.calls if whole is not None else 0) as calls:
            status = run_program(program.main)
        log.with_name("calls").write_text(str(calls.number))
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else 1
        print(error.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


class _Calls:
    """In the block, calls of the file system are counted, and one of them is the last."""

    def __init__(self, kill: Kill | None, expected: int) -> None:
        self.number = 0
        self._how = kill.how if kill is not None else ""
        self._last = 1 + int(kill.share * expected) if kill is not None else 0
        self._size = kill.size if kill is not None else 0
        self._originals: list[tuple[Any, str, Any]] = []

    def __enter__(self) -> _Calls:
        for name in CALLS:
            self._patch(os, name, self._counted(getattr(os, name)))
        for module in (builtins, io):
            self._patch(module, "open", self._opened(builtins.open))
        return self

    def __exit__(self, *_: object) -> None:
        for module, name, original in self._originals:
            setattr(module, name, original)

    def _patch(self, module: Any, name: str, own: Any) -> None:
        self._originals.append((module, name, getattr(module, name)))
        setattr(module, name, own)

    def _counted(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            if threading.current_thread() is not threading.main_thread():
                return function(*args, **kwargs)  # TensorBoard's, at times that none can repeat
            self.number += 1
            is_last = self.number == self._last
            if is_last and self._how == "before":
                os.kill(os.getpid(), signal.SIGKILL)
            if is_last and self._how == "write":
                # the kernel writes what fits, then kills
                resource.setrlimit(resource.RLIMIT_FSIZE, (self._size, self._size))
            result = function(*args, **kwargs)
            if is_last and self._how == "after":
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return call

    def _opened(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """``open`` for writing; reading changes nothing."""
        counted = self._counted(function)

        @functools.wraps(function)
        def call(file: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
            writes = any(letter in mode for letter in "wax+")
            return (counted if writes else function)(file, mode, *args, **kwargs)

        return call
