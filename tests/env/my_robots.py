"""Environments that ``tests/env/served.py`` serves; imported where there is no project."""

import os

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Dict


def make_pendulum():
    """Gymnasium's own."""
    return gymnasium.make("Pendulum-v1")


class Arm(gymnasium.Env):
    """A point that follows its action; a camera; never ends by itself.

    ``joints[0]`` counts the steps since the reset, so that a gap would be seen. Without
    ARM_FAULT it works; with it, it fails once that file exists (and removes it).
    """

    action_space = Box(-0.5, 0.5, (2,), np.float32)
    observation_space = Dict(
        joints=Box(-1e6, 1e6, (3,), np.float64), wrist=Box(0, 255, (8, 8, 3), np.uint8)
    )
    metadata = {"render_modes": ["rgb_array"], "render_fps": 7}  # noqa: RUF012
    render_mode = "rgb_array"

    def reset(self, *, seed=None, options=None):
        self.joints = np.array([0.0, 0.0, 0.0])
        return self._observe(), {}

    def step(self, action):
        fault = os.environ.get("ARM_FAULT", "")
        if fault and os.path.exists(fault):
            os.remove(fault)
            raise RuntimeError("joint 3 is at its limit")
        self.joints += [1.0, *action]
        return self._observe(), 0.25, False, False, {"at": np.float32(2), "far": np.bool_(True)}

    def render(self):
        return np.full((8, 8, 3), min(self.joints[0], 255), np.uint8)

    def _observe(self):
        wrist = np.full((8, 8, 3), min(self.joints[0], 255), np.uint8)
        return {"joints": self.joints.copy(), "wrist": wrist}


def make_arm():
    """A robot."""
    return Arm()


def make_words():
    """Observations that are no numbers."""
    env = Arm()
    env.observation_space = Dict(words=gymnasium.spaces.Text(3))
    return env


def make_nothing():
    """No environment."""
    return 3
