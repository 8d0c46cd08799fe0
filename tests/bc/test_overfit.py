"""One demonstration of a real simulation, seen through a camera, is learned by heart."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import train_bc
from common_utils import run_config
from common_utils.gl import best_backend
from common_utils.records import read_metrics

ROOT = Path(__file__).resolve().parents[2]
CAMERA = "robot0_eye_in_hand"

pytestmark = pytest.mark.skipif(
    best_backend() == "disabled", reason="no OpenGL back end renders on this machine"
)


@pytest.fixture
def demonstration(tmp_path: Path) -> Path:
    """One episode of Lift in images of 40 x 40; OpenGL stays out of this process."""
    command = [sys.executable, "-m", "tools.generate_demos", "--task", "Lift", "--num", "1"]
    command += ["--cameras", f"[{CAMERA}]", "--image_size", "80", "--obs_size", "40"]
    command += ["--render_quality", "fast", "--workers", "0", "--out", str(tmp_path)]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "MUJOCO_GL": best_backend()}
    subprocess.run(command, cwd=ROOT, env=env, check=True, timeout=600)
    return tmp_path / "processed_data40.hdf5"


def test_the_loss_of_one_demonstration_falls_below_a_thousandth(
    tmp_path: Path, demonstration: Path
):
    # images alone, unshifted (with shifts it takes far longer), all of the steps in each batch
    args = ["--config_path", str(ROOT / "release/cfgs/robomimic_bc/lift_pixel.yaml")]
    args += ["--dataset.path", str(demonstration), "--dataset.num_data", "1"]
    args += ["--dataset.sampling", "epochs", "--batch_size", "30"]
    args += ["--policy.use_prop", "0", "--policy.aug_pad", "0"]
    args += ["--lr_schedule", "exponential", "--lr_decay_steps", "0.5"]
    args += ["--num_epoch", "4", "--epoch_len", "30", "--num_eval_episode", "0"]
    args += ["--device", "cpu", "--save_dir", str(tmp_path / "run")]
    train_bc.run(run_config.parse_args(train_bc.MainConfig, args))
    losses = [r["train/loss"] for r in read_metrics(tmp_path / "run" / "metrics.jsonl")]
    assert losses[0] > 0.1
    assert losses[-1] < 1e-3, losses
