"""A process may render first and make its optimisers later: triton and Mesa each bring an LLVM."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from common_utils.gl import BACKENDS, probe

REPO = Path(__file__).resolve().parents[2]
OPTIMIZER = """
import torch
torch.optim.Adam(torch.nn.Linear(2, 2).parameters())
"""
# what of an optimiser brings an LLVM, in a tenth of the time
TRITON = "import triton._C.libtriton"
PROGRAM = """
import sys
from env.config import EnvConfig
from env.factory import make_env
env = make_env(EnvConfig(suite="metaworld", task="Assembly", cameras=sys.argv[1:]))
env.reset(seed=0)
{later}
env.reset(seed=1)
env.close()
print("alive", *sys.modules)
"""


def run(later: str, backend: str, cameras: list[str]) -> list[str]:
    """Make an environment, then do something else; the modules that the process has at its end."""
    works, message = probe(backend)
    if not works:
        pytest.skip(message)
    env = os.environ | {"MUJOCO_GL": backend, "PYTHONPATH": str(REPO)}
    env.pop("PYOPENGL_PLATFORM", None)  # set by this process's own back end, if it rendered
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(later=later), *cameras],
        cwd=REPO,
        env=env,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0 and "alive" in done.stdout, (done.returncode, done.stderr)
    return done.stdout.split()


def test_environment_before_the_first_optimizer_does_not_crash() -> None:
    modules = run(OPTIMIZER, BACKENDS[0], ["corner2"])
    if importlib.util.find_spec("triton") is not None:
        assert "triton._C.libtriton" in modules  # so the test below is of optimisers


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="there is no triton")
@pytest.mark.parametrize("cameras", [["corner2"], []], ids=["pixels", "states"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_environment_before_triton_does_not_crash(backend: str, cameras: list[str]) -> None:
    run(TRITON, backend, cameras)
