"""Errors that the user can fix, and the one way in which programs report them."""

from __future__ import annotations

import io
import os
import re
import select
import sys
import threading
import unicodedata
from collections.abc import Callable
from typing import Any

from common_utils.atomic import full_disk
from common_utils.paths import expand_home_in_options

USER_ERROR = 2
INTERRUPTED = 130  # what shells report for a process that SIGINT ended
MOST_LINES = 3
UNSEEN = ("Cc", "Cf", "Zl", "Zp")  # categories of Unicode
NOBODY_READS = 141  # and for one that SIGPIPE ended
_LONG_NAME = re.compile(r"'[^'\n]{400,}'|\S{400,}")


def shortened(text: str, limit: int = 80) -> str:
    """``text`` in one line of at most ``limit`` characters, for messages."""
    text = " ".join(text.split())
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


class UserError(Exception):
    """Something the user supplied cannot be used: an option, a file, this machine.

    The message names the file or field, what was found and what was expected. Programs print it
    in a line or two and end with status 2; any other exception is a bug in the program and shows
    its traceback.
    """


class ConfigError(UserError):
    """The configuration cannot be used; the message names field, value and what was expected."""


def print_error(what: object) -> None:
    """Print a message on stderr. It may quote files, which must neither steer a terminal nor fill
    it: control characters become escapes, enormous names are shortened, and lines after the third
    stay in the third."""
    text = _LONG_NAME.sub(lambda found: f"{found[0][:120]}...{found[0][-60:]}", str(what))
    lines = text.split("\n")
    if len(lines) > MOST_LINES:
        lines[MOST_LINES - 1 :] = ["\\n".join(lines[MOST_LINES - 1 :])]
    print("error: " + "\n".join(printable(line) for line in lines), file=sys.stderr)


def printable(text: str) -> str:
    """``text`` in one line: characters that are not seen (control, direction, ends of lines) as
    escapes."""
    return "".join(repr(c)[1:-1] if unicodedata.category(c) in UNSEEN else c for c in text)


def run_program(main: Callable[..., int | None], *args: Any) -> int:
    """Run ``main(*args)`` as a program. Returns the exit status: that of ``main`` (None is 0), or
    2 after a UserError, a file system error or exhausted memory. ``~`` in options is the home
    folder, file names may contain any character, and characters that the console cannot show are
    printed as ``\\xe9``. If nobody reads the output any more, the program ends silently.

    Every entry script ends with ``sys.exit(run_program(main))``.
    """
    _use_utf8()
    _print_every_character()
    threading.excepthook = _thread_failed
    try:
        sys.argv[1:] = expand_home_in_options(sys.argv[1:])
    except ValueError as error:
        print_error(error)
        return USER_ERROR
    try:
        status = _run(main, *args)
        print(end="", flush=True)  # here, where a failure can be handled
    except BrokenPipeError:
        if not _silence_unread_output():
            raise
        return NOBODY_READS
    return status


def _run(main: Callable[..., int | None], *args: Any) -> int:
    """The status of ``main``; problems that are not bugs are reported in one line."""
    try:
        return main(*args) or 0
    except UserError as error:
        print_error(error)
        return USER_ERROR
    except KeyboardInterrupt:
        return INTERRUPTED
    except Exception as error:
        if full := full_disk(error):
            print_error(f"{full} ({error})")
        elif isinstance(error, OSError) and error.errno and error.filename:
            print_error(error)  # no permission, a file in the way, ...
        elif _out_of_memory(error):
            line = str(error).strip().partition("\n")[0] or type(error).__name__
            print_error(f"memory is exhausted ({line}); lower batch_size or the networks' sizes")
        else:
            raise
        return USER_ERROR


def _thread_failed(args: threading.ExceptHookArgs) -> None:
    """A thread that met a problem of the file system (TensorBoard's, in a removed folder) says
    so in a line; the main thread ends the program."""
    if isinstance(args.exc_value, OSError):
        print_error(args.exc_value)
    else:
        threading.__excepthook__(args)


def _use_utf8() -> None:
    """Restart in Python's UTF-8 mode if the locale has another encoding: TensorBoard and others
    assume that file names are UTF-8. Python does the same by itself, unless that is disabled.
    """
    if sys.getfilesystemencoding() != "utf-8" and os.environ.get("PYTHONUTF8") != "1":
        os.environ["PYTHONUTF8"] = "1"  # for worker processes too
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def _print_every_character() -> None:
    """On a console with another encoding, print escapes instead of raising."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _silence_unread_output() -> bool:
    """Whether a reader of the output has left, as ``| head`` does. If so, output that is still
    buffered is discarded; otherwise it would raise as Python exits.
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
    """torch has its own exception class for GPUs, but none for the CPU."""
    kinds = [kind.__name__ for kind in type(error).__mro__]
    exhausted = isinstance(error, MemoryError) or "OutOfMemoryError" in kinds
    return exhausted or "DefaultCPUAllocator: can't allocate memory" in str(error)
