"""Ends a run whose environment, in the run's own process, does not answer any more.

A hung renderer blocks its thread in the driver, where no exception reaches it. Environments in
processes of their own are killed and replaced (``env.worker_lanes``). Here only the end is left,
with a line that says where the program hangs. There is a complete state on disk at any time, so the
run can be continued.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import env
from common_utils.errors import USER_ERROR, print_error
from env.factory import suite_class

ENVS = str(Path(env.__file__).parent)
# what is asked of an environment; lanes in a vector environment step all of them in one call
CALLS = ("reset", "step", "render", "_begin", "_step")


@contextmanager
def watched(suite: str, timeout: float, log: Callable[[str], None]) -> Iterator[None]:
    """Inside the block, a call of an environment by this thread that takes longer than ``timeout``
    seconds ends the program, after a line in ``log`` and on the console. Time in which the whole
    program is stopped does not count. Code that never gives Python's lock back is not noticed.
    An environment of ``suite`` that is somewhere else has time limits of its own.
    """
    if suite_class(suite).only_one:
        yield
        return
    over = threading.Event()
    args = threading.get_ident(), timeout, log, over
    threading.Thread(target=_watch, args=args, name="watchdog", daemon=True).start()
    try:
        yield
    finally:
        over.set()


def _watch(thread: int, timeout: float, log: Callable[[str], None], over: threading.Event) -> None:
    tick = min(1.0, timeout / 4)
    call: FrameType | None = None
    ticks = 0  # in which this call was running
    while not over.wait(tick):
        frame = sys._current_frames().get(thread)
        now = _call_of_environment(frame)
        # kept between ticks, so that another call cannot have the same frame
        ticks, call = (ticks + 1 if now is not None and now is call else 0), now
        if ticks * tick >= timeout and call is not None and not over.is_set():
            _end(_hung(call, frame, timeout), log)


def _call_of_environment(frame: FrameType | None) -> FrameType | None:
    """The outermost call of an environment that a thread is in."""
    found = None
    while frame is not None:
        code = frame.f_code
        if code.co_name in CALLS and code.co_filename.startswith(ENVS):
            found = frame
        frame = frame.f_back
    return found


def _hung(call: FrameType, frame: FrameType | None, timeout: float) -> str:
    where = "?" if frame is None else f"{frame.f_code.co_filename}:{frame.f_lineno}"
    return (
        f"the environment did not answer for {timeout:g} s (env_timeout) in {call.f_code.co_name}, "
        f"at {where}; the run is ended. The same command with --resume 1 continues from its last "
        "state; with --num_env 2 a process that hangs is replaced"
    )


def _end(line: str, log: Callable[[str], None]) -> None:
    try:
        log(line)
        print_error(line)
        sys.stdout.flush()
    finally:
        os._exit(USER_ERROR)  # the hung thread cannot be ended otherwise
