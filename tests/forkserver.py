"""Python programs as processes of their own that do not load third-party packages again.

Loading torch takes seconds, and tests run hundreds of programs. Here a server has the packages, but
none of this project's modules, and is forked for each program, which has arguments, variables, a
folder, output and an exit status of its own, and can be killed. Where loading itself is tested,
start ``sys.executable`` instead.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import json
import os
import runpy
import select
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[1]
# what nearly every program loads and takes long
# (optimisers load torch._dynamo)
PACKAGES = (
    "torch", "torch._dynamo", "numpy", "scipy.spatial.transform", "h5py", "yaml", "pyrallis",
    "gymnasium", "rich.progress",
)  # fmt: skip
# of the server: read while packages are loaded, and the same in all tests
FIXED = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
LARGEST = 1 << 18  # bytes of a message
KILLED = -signal.SIGKILL


class Program:
    """A program that runs; as much of ``subprocess.Popen`` as tests need."""

    def __init__(
        self, words: Sequence[str], variables: Mapping[str, str], folder: Path = ROOT
    ) -> None:
        """words: as after ``python``: a script, ``-m module`` or ``-c code``, and arguments."""
        self.words = list(words)
        self.output, self.errors = tempfile.TemporaryFile(), tempfile.TemporaryFile()
        self._status, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        message = json.dumps([self.words, dict(variables), str(folder)]).encode()
        with theirs:
            fds = [theirs.fileno(), self.output.fileno(), self.errors.fileno()]
            socket.send_fds(_server(), [message], fds)
        self.pid = int(self._status.recv(32))
        self.returncode: int | None = None

    def wait(self, timeout: float | None = None) -> int:
        """Exit status, negative for a signal; TimeoutExpired after ``timeout`` seconds."""
        if self.returncode is None:
            if not select.select([self._status], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(self.words, timeout or 0.0)
            self.returncode = int(self._status.recv(32) or KILLED)
            self._status.close()
        return self.returncode

    def poll(self) -> int | None:
        """Exit status, or None while it runs."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Nothing happens if it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """At once."""
        self.send_signal(signal.SIGKILL)

    def done(self, timeout: float) -> subprocess.CompletedProcess[str]:
        """Wait for its end; its output as text. It is killed after ``timeout`` seconds."""
        try:
            status = self.wait(timeout)
        except subprocess.TimeoutExpired:
            self.kill()
            raise
        texts = []
        for file in (self.output, self.errors):
            file.seek(0)
            texts.append(file.read().decode())
            file.close()
        return subprocess.CompletedProcess(self.words, status, *texts)


def run(
    *words: object, variables: Mapping[str, str], folder: Path = ROOT, timeout: float = 120
) -> subprocess.CompletedProcess[str]:
    """Run a program to its end; see :class:`Program`."""
    return Program([str(w) for w in words], variables, folder).done(timeout)


_connection: socket.socket | None = None


def _server() -> socket.socket:
    """The connection to the server, which ends with this process."""
    global _connection
    if _connection is None:
        _connection, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            code = f"from tests.forkserver import serve; serve({theirs.fileno()})"
            subprocess.Popen(
                [sys.executable, "-c", code], pass_fds=[theirs.fileno()], env=os.environ | FIXED,
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            )  # fmt: skip
    return _connection


# ------------------------------------------------------------------------------ the server


def serve(fd: int) -> None:
    """Fork a program for each message; its process id, and later its status, are the answer."""
    for name in PACKAGES:
        importlib.import_module(name)
    gc.freeze()  # not touched, and so not copied, by programs
    asked = socket.socket(fileno=fd)
    with selectors.DefaultSelector() as waiting:
        waiting.register(asked, selectors.EVENT_READ)
        while True:
            for key, _ in waiting.select():
                if key.fileobj is asked:
                    message, fds, *_ = socket.recv_fds(asked, LARGEST, 3)
                    if not message:
                        return
                    pid = os.fork()
                    if not pid:
                        waiting.close()
                        asked.close()
                        _become(message, fds)
                    for done in fds[1:]:
                        os.close(done)
                    status = socket.socket(fileno=fds[0])
                    status.send(b"%d" % pid)
                    waiting.register(os.pidfd_open(pid), selectors.EVENT_READ, (pid, status))
                else:
                    waiting.unregister(key.fileobj)
                    os.close(key.fd)
                    pid, status = key.data
                    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
                    with status, contextlib.suppress(OSError):  # nobody may be left to hear it
                        status.send(b"%d" % code)


def _become(message: bytes, fds: list[int]) -> None:
    """Run the program in this new process, as ``python`` would, and end."""
    words, variables, folder = json.loads(message)
    os.close(fds[0])
    for number, fd in enumerate(fds[1:], 1):
        os.dup2(fd, number)
        os.close(fd)
    os.environ.clear()
    os.environ.update(variables)
    os.chdir(folder)
    for name in ("tests.forkserver", "tests"):  # the folder may be another copy of the project
        sys.modules.pop(name, None)
    inherited = sys.path[1:]  # without that of ``-c``
    inherited.remove(FIXED["PYTHONPATH"])
    named = [p for p in variables.get("PYTHONPATH", "").split(os.pathsep) if p]
    sys.path[:] = [_first_path(words), *named, *inherited]
    try:
        _execute(words)
        code = 0
    except SystemExit as end:
        code = _status(end.code)
    except BaseException:
        traceback.print_exc()
        code = 1
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


def _first_path(words: list[str]) -> str:
    if words[0] == "-c":
        return ""
    return os.getcwd() if words[0] == "-m" else str(Path(words[0]).resolve().parent)


def _execute(words: list[str]) -> None:
    sys.orig_argv = [sys.executable, *words]
    if words[0] == "-c":
        sys.argv = ["-c", *words[2:]]
        main = ModuleType("__main__")
        sys.modules["__main__"] = main
        exec(compile(words[1], "<string>", "exec"), main.__dict__)
    elif words[0] == "-m":
        sys.argv = words[1:]
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = list(words)
        runpy.run_path(words[0], run_name="__main__")


def _status(code: object) -> int:
    """Of ``SystemExit``."""
    if isinstance(code, int):
        return code & 0xFF
    if code is not None:
        print(code, file=sys.stderr)
    return int(code is not None)
