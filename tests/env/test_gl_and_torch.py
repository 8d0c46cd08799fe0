"""A process may render first and make its optimisers later: triton and Mesa each bring an LLVM."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from common_utils.gl import best_backend

REPO = Path(__file__).resolve().parents[2]
PROGRAM = """
from env.factory import EnvConfig, make_env
env = make_env(EnvConfig(suite="metaworld", task="Assembly", cameras=["corner2"]))
env.reset(seed=0)
import torch
torch.optim.Adam(torch.nn.Linear(2, 2).parameters())
env.reset(seed=1)
env.close()
print("alive")
"""


def test_rendering_before_the_first_optimizer_does_not_crash() -> None:
    backend = best_backend()
    if backend == "disabled":
        pytest.skip("no OpenGL back end renders here")
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=REPO,
        env=os.environ | {"MUJOCO_GL": backend, "PYTHONPATH": str(REPO)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0 and "alive" in done.stdout, (done.returncode, done.stderr)
