"""The example of docs/environments.md, word for word."""

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Dict


class Reach(gymnasium.Env):
    """Move a point onto a goal, by velocity; seen from above."""

    action_space = Box(-0.1, 0.1, (2,), np.float32)
    observation_space = Dict(
        top=Box(0, 255, (64, 64, 3), np.uint8),
        joints=Box(-1, 1, (2,), np.float32),
        goal=Box(-1, 1, (2,), np.float32),
    )

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)  # self.np_random is the one source of randomness
        self.joints = np.zeros(2, np.float32)
        self.goal = self.np_random.uniform(-0.8, 0.8, 2).astype(np.float32)
        return self._observe(), {}

    def step(self, action):
        self.joints = np.clip(self.joints + action, -1, 1)
        reached = bool(np.abs(self.joints - self.goal).max() < 0.1)
        return self._observe(), float(reached), False, False, {"reached": reached}

    def _observe(self):
        top = np.full((64, 64, 3), 40, np.uint8)
        for point, channel in ((self.goal, 1), (self.joints, 0)):
            column, row = (31 + 30 * point).astype(int)
            top[max(row - 2, 0) : row + 3, max(column - 2, 0) : column + 3, channel] = 250
        return {"top": top, "joints": self.joints.copy(), "goal": self.goal.copy()}


gymnasium.register("my/Reach-v0", entry_point="my_tasks:Reach")
