"""A separate process that builds one environment and plays it (``env.worker``)."""

from __future__ import annotations

import os
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Mapping
from typing import Any

from env.shared_arrays import SharedConnection

DEFAULT_MAKER = "env.worker:make_env"
# seconds for importing and building a simulator, even if steps have a shorter limit: on a busy
# machine this takes minutes
BUILD_TIMEOUT = 600.0
# extra seconds that a worker gets for its answer when its time seems to be over
GRACE = 10.0


class WorkerProcess:
    """A process that runs ``env.worker``, and the connection to it.

    Args:
        name: its name in messages.
        timeout: seconds it may take for one answer before it counts as hung (at least
            BUILD_TIMEOUT for building its environment).
        error: the exception class that is raised if it fails, dies or hangs.
        lost: the one that is raised if it dies or hangs, if not the same.
    """

    def __init__(
        self,
        name: str,
        timeout: float,
        error: type[Exception],
        lost: type[Exception] | None = None,
    ) -> None:
        ours, theirs = socket.socketpair()
        memory = os.memfd_create("env.worker")
        env = dict(os.environ, OMP_NUM_THREADS="1")
        env["PYTHONPATH"] = os.pathsep.join(p or os.getcwd() for p in sys.path)
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "env.worker", str(theirs.fileno()), str(memory)],
                pass_fds=[theirs.fileno(), memory],
                stdin=subprocess.DEVNULL,
                env=env,
                # the trainer handles Ctrl-C; the worker ends with its connection
                start_new_session=True,
            )
        # a worker that stalls in the middle of a message must not stall this process
        ours.setsockopt(
            socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", int(timeout) + 1, 0)
        )
        self.conn = SharedConnection(ours.detach(), memory)
        self.name, self.timeout, self.error = name, timeout, error
        self.lost = error if lost is None else lost
        self.deadline = self.allowed = 0.0
        self._grace = True
        self.what = "starting"

    def build(self, maker: str, env_cfg: Mapping[str, Any]) -> None:
        """Let it make its environment; it answers ("ready", spec, replayable)."""
        self.what = "building its environment"
        self.send(("env", maker, env_cfg), max(self.timeout, BUILD_TIMEOUT))

    def send(self, message: tuple[Any, ...], timeout: float | None = None) -> None:
        """Send ``message``; its answer may take ``timeout`` seconds (default: ``self.timeout``)."""
        self.allowed = self.timeout if timeout is None else timeout
        self.deadline = time.monotonic() + self.allowed
        self._grace = True
        try:
            self.conn.send(message)
        except OSError:
            raise self.lost(self.obituary()) from None

    def receive(self) -> tuple[Any, ...]:
        """Its next message; raises ``error`` if it failed, ``lost`` if it died or is overdue."""
        while not self.conn.poll(max(0.0, self.deadline - time.monotonic())):
            if self.is_late():
                raise self.lost(self.overdue())
        try:
            message = self.conn.recv()
        except (EOFError, OSError):
            raise self.lost(self.obituary()) from None
        if message[0] == "refused":
            raise self.error(f"{self.name} failed while {self.what}: {message[1]}")
        if message[0] == "error":
            raise self.error(f"{self.name} failed while {self.what}:\n{message[1]}")
        return message

    def is_late(self) -> bool:
        """Whether its time is over and it has not answered.

        It gets a little more time once per answer: if the whole job was frozen (suspended, or
        stopped by a scheduler) for longer than the limit, the worker had no time to answer.
        """
        if self.conn.poll(0) or time.monotonic() < self.deadline:
            return False
        if not self._grace:
            return True
        self._grace, more = False, min(GRACE, self.timeout)
        self.allowed += more
        self.deadline = time.monotonic() + more
        return False

    def overdue(self) -> str:
        """The message about a hung worker."""
        return (
            f"{self.name} (process {self.process.pid}) did not answer for {self.allowed:g} s "
            f"while {self.what}; it was ended"
        )

    def obituary(self) -> str:
        """The message about a dead worker."""
        try:
            code: int | None = self.process.wait(timeout=2)
        except subprocess.TimeoutExpired:
            code = None
        if code is None:
            how = "stopped answering"
        else:
            how = f"was killed by signal {-code}" if code < 0 else f"ended with status {code}"
        hint = "; out of memory? try fewer workers" if code == -9 else ""
        return f"{self.name} (process {self.process.pid}) {how} while {self.what}{hint}"

    def kill(self) -> None:
        """End it; safe to call twice."""
        self.conn.close()
        try:
            self.process.wait(timeout=0.5)  # the closed connection ends a healthy worker
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
