"""Servers of environments in processes of their own, as a robot runs them.

The folder ``tools/env_server`` is copied next to this file's environments, and nothing else of the
project can be imported there.
"""

from __future__ import annotations

import os
import queue
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from env.config import EnvConfig

HERE = Path(__file__).parent
REPO = HERE.parents[1]
PATIENCE = 60.0  # seconds; a busy machine is slow


def free_port() -> int:
    """A port that nobody listens at."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


class Server:
    """``python -m env_server`` in ``folder``; what it prints, and how it is started and ended."""

    def __init__(self, folder: Path, env: str, *options: str, token: str = "") -> None:
        self.folder, self.env, self.token = folder, env, token
        if not (folder / "env_server").exists():
            shutil.copytree(REPO / "tools" / "env_server", folder / "env_server")
            shutil.copy(HERE / "my_robots.py", folder)
        self.port = free_port()
        self.options = ["--port", str(self.port), "--button_port", "0", *options]
        self.lines: list[str] = []
        self.url = f"ws://127.0.0.1:{self.port}"
        self.start()

    def start(self, stdin: int = subprocess.DEVNULL) -> None:
        """Start it (again), and wait until it listens."""
        command = [sys.executable, "-m", "env_server", "--env", self.env, *self.options]
        env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {
            "IBRL_TOKEN": self.token
        }
        self.process = subprocess.Popen(
            command, cwd=self.folder, env=env, stdin=stdin, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        self._fresh: queue.Queue[str | None] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()
        place = self.wait_for(r"success button at http://127.0.0.1:(\d+)/")
        self.page = f"http://127.0.0.1:{place}"

    def _read(self) -> None:
        assert self.process.stdout is not None
        fresh = self._fresh
        for line in self.process.stdout:
            self.lines.append(line)
            fresh.put(line)
        fresh.put(None)

    def wait_for(self, pattern: str) -> str:
        """The first group (or all) of the next printed line that has ``pattern``."""
        while (line := self._fresh.get(timeout=PATIENCE)) is not None:
            if found := re.search(pattern, line):
                return found[found.lastindex or 0]
        raise AssertionError("".join(self.lines))

    def kill(self, sent: signal.Signals = signal.SIGKILL) -> None:
        """End it."""
        self.process.send_signal(sent)
        self.process.wait(timeout=PATIENCE)

    def http(self, path: str, method: str = "POST", **headers: str) -> tuple[int, str]:
        """Status and text of a request to the page."""
        request = urllib.request.Request(self.page + path, method=method, headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE) as reply:
                return reply.status, reply.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def config(self, task: str, **more: object) -> EnvConfig:
        """A client's configuration."""
        options = {"use_state": 1, "episode_length": 30, "remote_retry_for": 30.0, **more}
        return EnvConfig(suite="remote", task=task, remote_url=self.url, **options)  # type: ignore[arg-type]


Serve = Callable[..., Server]


@contextmanager
def servers(folder: Path) -> Iterator[Serve]:
    """A function that starts servers, which end with the block."""
    started: list[Server] = []

    def start(*args: str, **more: str) -> Server:
        started.append(Server(folder, *args, **more))
        return started[-1]

    try:
        yield start
    finally:
        for server in started:
            if server.process.poll() is None:
                server.kill()
