"""Errors that the user can mend, and the one way in which programs report them."""

from __future__ import annotations

import io
import os
import select
import sys
from collections.abc import Callable
from typing import Any

from common_utils.atomic import full_disk
from common_utils.paths import expand_home_in_options

USER_ERROR = 2
INTERRUPTED = 130  # as shells count a process that SIGINT ended
NOBODY_READS = 141  # and one that SIGPIPE ended


class UserError(Exception):
    """What was given cannot be used: an option, a file, this machine.

    The message names the file or field, what was found and what was expected. Programs print it
    in a line or two and end with status 2; any other exception is a fault of the program and
    shows its traceback.
    """


def run_program(main: Callable[..., int | None], *args: Any) -> int:
    """``main(*args)`` as a program: its exit status (None is 0), 2 after a UserError and after
    what the file system or the memory refuses. ``~`` in its options is the home folder, names of
    files may hold any character, and what the console cannot show is printed as ``\\xe9``. Where
    nobody reads the output any more, it ends without a word.

    Every entry script ends with ``sys.exit(run_program(main))``.
    """
    _use_utf8()
    _print_every_character()
    sys.argv[1:] = expand_home_in_options(sys.argv[1:])
    try:
        status = _run(main, *args)
        print(end="", flush=True)  # here, where its failure can be met
    except BrokenPipeError:
        if not _silence_unread_output():
            raise
        return NOBODY_READS
    return status


def _run(main: Callable[..., int | None], *args: Any) -> int:
    """Its status, after one line about what is no fault of the program."""
    try:
        return main(*args) or 0
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return USER_ERROR
    except KeyboardInterrupt:
        return INTERRUPTED
    except Exception as error:
        if full := full_disk(error):
            print(f"error: {full} ({error})", file=sys.stderr)
        elif isinstance(error, OSError) and error.errno and error.filename:
            print(f"error: {error}", file=sys.stderr)  # no permission, a file in the way, ...
        elif _out_of_memory(error):
            line = str(error).strip().partition("\n")[0] or type(error).__name__
            print(
                f"error: memory is exhausted ({line}); lower batch_size or the networks' sizes",
                file=sys.stderr,
            )
        else:
            raise
        return USER_ERROR


def _use_utf8() -> None:
    """Start again in Python's UTF-8 mode where the locale has another encoding: TensorBoard and
    others take names of files for UTF-8 text. Python does the same by itself, unless forbidden.
    """
    if sys.getfilesystemencoding() != "utf-8" and os.environ.get("PYTHONUTF8") != "1":
        os.environ["PYTHONUTF8"] = "1"  # for worker processes too
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def _print_every_character() -> None:
    """A console of another encoding gets escapes, where print would raise."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _silence_unread_output() -> bool:
    """Whether a reader of the output has left, as ``| head`` does. What is still buffered, and
    else would raise as Python ends, goes nowhere.
    """
    poll = select.poll()
    for stream in (1, 2):
        poll.register(stream, select.POLLOUT)
    unread = [stream for stream, event in poll.poll(0) if event & select.POLLERR]
    for stream in unread:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream)
        os.close(nowhere)
    return bool(unread)


def _out_of_memory(error: Exception) -> bool:
    """torch has a class of its own for GPUs, and none for the CPU."""
    kinds = [kind.__name__ for kind in type(error).__mro__]
    exhausted = isinstance(error, MemoryError) or "OutOfMemoryError" in kinds
    return exhausted or "DefaultCPUAllocator: can't allocate memory" in str(error)
