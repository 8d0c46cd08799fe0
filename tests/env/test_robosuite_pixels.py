"""Images of robosuite: upright, the right camera, those that robosuite itself draws."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from common_utils.gl import best_backend

pytestmark = pytest.mark.skipif(
    best_backend() == "disabled", reason="no OpenGL back end renders on this machine"
)

HEAD = """
import numpy as np
from env.config import EnvConfig
from env.factory import make_env
CAMERAS = ["agentview", "robot0_eye_in_hand"]
def make(**options):
    options = {"cameras": CAMERAS, **options}
    env = make_env(EnvConfig(suite="robosuite", task="Lift", **options))
    return env
"""

PICTURES = (
    HEAD
    + """
env = make(obs_stack=2, record_images=1)
first, _ = env.reset(seed=3)
obs, *_, info = env.step(np.zeros(7))
for camera in CAMERAS:
    big = info["images"][camera]
    assert big.shape == (224, 224, 3) and big.dtype == np.uint8
    assert np.array_equal(big, env.render(camera))
    small = obs[camera]
    assert small.shape == (6, 96, 96) and small.dtype == np.uint8
    assert np.array_equal(small[3:], first[camera][:3]), "the newest frame comes first"
    assert not first[camera][3:].any()

# the red cube is where the camera's geometry says, so the picture is neither flipped nor turned
sim = env._sim.sim
def expected(camera, point):
    number = sim.model.camera_name2id(camera)
    local = sim.data.cam_xmat[number].reshape(3, 3).T @ (point - sim.data.cam_xpos[number])
    scale = 112 / np.tan(np.radians(sim.model.cam_fovy[number]) / 2)
    return 112 - local[1] / -local[2] * scale, 112 + local[0] / -local[2] * scale
cube = sim.data.body_xpos[env._sim.cube_body_id]
picture = info["images"]["agentview"].astype(int)
red = np.argwhere((picture[..., 0] > 2 * picture[..., 1]) & (picture[..., 0] > 60))
assert len(red) > 50
distance = np.abs(red.mean(axis=0) - expected("agentview", cube)).max()
assert distance < 6, (red.mean(axis=0), expected("agentview", cube))

# robosuite's own renderer draws the same
from robosuite.utils.binding_utils import MjRenderContextOffscreen
shown = {c: info["images"][c] for c in CAMERAS}
context = MjRenderContextOffscreen(sim, device_id=-1)
context.vopt.geomgroup[0] = 0
for camera in CAMERAS:
    theirs = sim.render(camera_name=camera, width=224, height=224)[::-1]
    assert np.abs(theirs.astype(int) - shown[camera]).mean() < 0.05, camera
print("ok")
"""
)

REPLAY = (
    HEAD
    + """
from common_utils.ibrl_utils import resize_images
import torch
env = make(cameras=["robot0_eye_in_hand"], render_quality="fast", obs_stack=2)
env.reset(seed=5)
for action in np.random.default_rng(0).uniform(-1, 1, (5, 7)):
    want = env.step(action)[0]
other = make(cameras=["robot0_eye_in_hand"], render_quality="fast", obs_stack=2)
got = other.load_state_dict(env.state_dict())
assert all(np.array_equal(got[k], want[k]) for k in want), "replayed pictures differ"
big = torch.from_numpy(env.render("robot0_eye_in_hand")).permute(2, 0, 1)
there = resize_images(big, 96).numpy().astype(int)
assert np.abs(there - want["robot0_eye_in_hand"][:3]).max() <= 1, "another resize than BC's"
sharp = make(cameras=["robot0_eye_in_hand"])
fine = sharp.load_state_dict(env.state_dict())["robot0_eye_in_hand"].astype(int)
difference = np.abs(fine[:3] - want["robot0_eye_in_hand"][:3]).mean()
assert 0 < difference < 20, difference
env.close()
env.close()
print("ok")
"""
)


def _run(python: Callable[..., Any], program: str) -> None:
    done = python("-c", program, gl=best_backend())
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith("ok")


def test_pictures_are_upright_and_robosuites_own(python: Callable[..., Any]):
    _run(python, PICTURES)


def test_pictures_are_replayed_and_resized_as_in_training(python: Callable[..., Any]):
    _run(python, REPLAY)
