"""Workers: each builds one environment somewhere else and plays it (``env.worker``).

    worker.send(message)         # one message, then
    answer = worker.receive()    # its one answer

``WORKERS`` has a row per place where they may be.
"""

from __future__ import annotations

import os
import socket
import struct
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from common_utils.elsewhere import import_path
from common_utils.lookup import resolve
from common_utils.resources import format_bytes
from env.shared_arrays import SharedConnection

# places of workers: "module:class", a subclass of Worker
WORKERS = {"process": "env.remote:WorkerProcess", "ray": "env.ray_worker:RayWorker"}

DEFAULT_MAKER = "env.worker:make_env"
# seconds for importing and building a simulator, even if steps have a shorter limit: on a busy
# machine this takes minutes
BUILD_TIMEOUT = 600.0
# extra seconds that a worker gets for its answer when its time seems to be over
GRACE = 10.0
# times that something is asked for, if the worker is lost each time
TRIES = 3


class WorkerLost(Exception):
    """A worker died or hung; what it was asked for can be asked of another one."""


def worker_class(engine: str) -> type[Worker]:
    """The workers of a row of ``WORKERS``."""
    kind: type[Worker] = resolve(WORKERS[engine])
    return kind


class Worker(ABC):
    """Another process with one environment.

    Args:
        name: its name in messages.
        timeout: seconds it may take for one answer before it counts as hung (at least
            BUILD_TIMEOUT for building its environment).
        error: the exception class that is raised if its environment fails.
    """

    def __init__(self, name: str, timeout: float, error: type[Exception]) -> None:
        self.name, self.timeout, self.error = name, timeout, error
        self.deadline = self.allowed = 0.0
        self._grace = True
        self.what = "starting"

    def build(self, maker: str, env_cfg: Mapping[str, Any]) -> None:
        """Let it make its environment; it answers ("ready", spec, replayable)."""
        self.what = "building its environment"
        self.send(("env", maker, env_cfg), max(self.timeout, BUILD_TIMEOUT))

    def send(self, message: tuple[Any, ...], timeout: float | None = None) -> None:
        """Send ``message``; its answer may take ``timeout`` seconds (default: ``self.timeout``).

        Raises WorkerLost if it is known to be dead.
        """
        self.allowed = self.timeout if timeout is None else timeout
        self.deadline = time.monotonic() + self.allowed
        self._grace = True
        self._put(message)

    def receive(self) -> tuple[Any, ...]:
        """Its answer; raises ``error`` if it failed, WorkerLost if it died or is overdue."""
        while not self.has_answer(max(0.0, self.deadline - time.monotonic())):
            if self.is_late():
                raise WorkerLost(self.overdue())
        message = self._take()
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
        if self.has_answer(0) or time.monotonic() < self.deadline:
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
            f"{self.name} ({self.place}) did not answer for {self.allowed:g} s while {self.what}; "
            "it was ended"
        )

    @property
    @abstractmethod
    def place(self) -> str:
        """Where it is, for messages."""

    @abstractmethod
    def has_answer(self, seconds: float) -> bool:
        """Whether it answers, or is found dead, within ``seconds``."""

    @classmethod
    @abstractmethod
    def first(cls, workers: Sequence[Worker], seconds: float) -> list[Worker]:
        """Those that have an answer or are found dead, as soon as there is one; none after
        ``seconds``."""

    @classmethod
    @abstractmethod
    def most(cls) -> int:
        """How many can work at the same time."""

    @abstractmethod
    def housing(self) -> str:
        """Where it and its like are, with what there is room for; for logs."""

    def memory(self) -> int:
        """Bytes that it takes of this machine's memory, 0 if it is not known."""
        return 0

    @abstractmethod
    def _put(self, message: tuple[Any, ...]) -> None:
        """Send; WorkerLost if it is known to be dead."""

    @abstractmethod
    def _take(self) -> tuple[Any, ...]:
        """The answer that is there; WorkerLost if it has died."""

    @abstractmethod
    def release(self) -> None:
        """Let it free its environment and end; does not wait, and is safe to call twice."""

    @abstractmethod
    def kill(self) -> None:
        """End it; safe to call twice."""


def end(workers: Sequence[Worker]) -> None:
    """End them all, at the same time."""
    for worker in workers:
        worker.release()
    for worker in workers:
        worker.kill()


class WorkerProcess(Worker):
    """A process of this machine, and the connection to it."""

    def __init__(self, name: str, timeout: float, error: type[Exception]) -> None:
        super().__init__(name, timeout, error)
        ours, theirs = socket.socketpair()
        memory = os.memfd_create("env.worker")
        env = dict(os.environ, OMP_NUM_THREADS="1", PYTHONPATH=import_path())
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

    @property
    def place(self) -> str:
        """See :class:`Worker`."""
        return f"process {self.process.pid}"

    def has_answer(self, seconds: float) -> bool:
        """See :class:`Worker`."""
        return self.conn.poll(seconds)

    @classmethod
    def first(cls, workers: Sequence[Worker], seconds: float) -> list[Worker]:
        """See :class:`Worker`."""
        by_conn = {w.conn: w for w in workers if isinstance(w, WorkerProcess)}
        return [by_conn[c] for c in wait(list(by_conn), timeout=seconds)]  # type: ignore[index]

    @classmethod
    def most(cls) -> int:
        """See :class:`Worker`; processes may be more than cores."""
        return sys.maxsize

    def housing(self) -> str:
        """See :class:`Worker`."""
        size = format_bytes(self.memory())
        return f"in a process of its own (about {size} each; {os.cpu_count()} cores)"

    def memory(self) -> int:
        """See :class:`Worker`."""
        try:
            lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        except OSError:
            return 0
        found = (line.split() for line in lines)
        return next((1024 * int(words[1]) for words in found if words[:1] == ["VmRSS:"]), 0)

    def _put(self, message: tuple[Any, ...]) -> None:
        try:
            self.conn.send(message)
        except OSError:
            raise WorkerLost(self._obituary()) from None

    def _take(self) -> tuple[Any, ...]:
        try:
            message: tuple[Any, ...] = self.conn.recv()
        except (EOFError, OSError):
            raise WorkerLost(self._obituary()) from None
        return message

    def _obituary(self) -> str:
        try:
            code: int | None = self.process.wait(timeout=2)
        except subprocess.TimeoutExpired:
            code = None
        if code is None:
            how = "stopped answering"
        else:
            how = f"was killed by signal {-code}" if code < 0 else f"ended with status {code}"
        hint = "; out of memory? try fewer workers" if code == -9 else ""
        return f"{self.name} ({self.place}) {how} while {self.what}{hint}"

    def release(self) -> None:
        """See :class:`Worker`; the closed connection ends a healthy one."""
        self.conn.close()

    def kill(self) -> None:
        """See :class:`Worker`."""
        self.release()
        try:
            self.process.wait(timeout=0.5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
