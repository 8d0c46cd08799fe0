"""A process may render first and make its optimisers later: triton and Mesa each bring an LLVM."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from common_utils.gl import BACKENDS, probe

REPO = Path(__file__).resolve().parents[2]
PROGRAM = """
import sys
from env.config import EnvConfig
from env.factory import make_env
env = make_env(EnvConfig(suite="metaworld", task="Assembly", cameras=sys.argv[1:]))
env.reset(seed=0)
import torch
torch.optim.Adam(torch.nn.Linear(2, 2).parameters())
env.reset(seed=1)
env.close()
print("alive")
"""


@pytest.mark.parametrize("cameras", [["corner2"], []], ids=["pixels", "states"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_environment_before_the_first_optimizer_does_not_crash(
    backend: str, cameras: list[str]
) -> None:
    works, message = probe(backend)
    if not works:
        pytest.skip(message)
    env = os.environ | {"MUJOCO_GL": backend, "PYTHONPATH": str(REPO)}
    env.pop("PYOPENGL_PLATFORM", None)  # set by this process's own back end, if it rendered
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *cameras],
        cwd=REPO,
        env=env,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0 and "alive" in done.stdout, (done.returncode, done.stderr)
