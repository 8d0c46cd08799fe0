"""What the environment tests share."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests import forkserver
from tests.env.served import Serve, servers

REPO = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def python() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run Python in the repository, with the given MUJOCO_GL."""

    def run(*args: str, gl: str = "disabled", **more: str) -> subprocess.CompletedProcess[str]:
        env = os.environ | {"MUJOCO_GL": gl, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPO)} | more
        env.pop("PYOPENGL_PLATFORM", None)
        return subprocess.run(
            [sys.executable, *args],
            cwd=REPO,
            env=env,
            text=True,
            capture_output=True,
            timeout=600,  # seconds; a busy machine is slow
        )

    return run


@pytest.fixture(scope="session")
def forked() -> Callable[..., subprocess.CompletedProcess[str]]:
    """The same for programs that use torch, which is not loaded again."""

    def run(*args: str, gl: str = "disabled", **more: str) -> subprocess.CompletedProcess[str]:
        env = os.environ | {"MUJOCO_GL": gl, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPO)} | more
        env.pop("PYOPENGL_PLATFORM", None)
        return forkserver.run(*args, variables=env, timeout=600)

    return run


@pytest.fixture(autouse=True)
def no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody's secret is sent to the servers of tests."""
    monkeypatch.delenv("IBRL_TOKEN", raising=False)


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """Starts servers of environments, which end with the test."""
    with servers(tmp_path) as start:
        yield start
