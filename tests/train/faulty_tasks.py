"""A point to be held at the origin, with faults where the environment variable FAULT says.

FAULT is "KIND:EPISODES:STEP": what goes wrong; in which episodes ("train": all with seeds above
999, "eval": all others, or those of one seed); from which step on of this environment in such
episodes (1, 2, ...).
"""

import os
import time

import gymnasium
import numpy as np
from gymnasium.spaces import Box


class Hold(gymnasium.Env):
    """Success once near the origin; reward 1 there."""

    action_space = Box(-0.2, 0.2, (2,), np.float32)
    observation_space = Box(-2, 2, (2,), np.float32)

    def __init__(self):
        self.kind, self.episodes, at = os.environ.get("FAULT", "::0").split(":")
        self.at, self.steps = int(at), 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.counts = self.episodes in ("train" if seed > 999 else "eval", str(seed))
        self.point = self.np_random.uniform(-1, 1, 2).astype(np.float32)
        return self.point.copy(), {}

    def step(self, action):
        self.point = np.clip(self.point + action, -2, 2)
        reward, obs = float(np.abs(self.point).max() < 0.3), self.point.copy()
        self.steps += self.counts
        if self.kind and self.counts and self.steps >= self.at:
            if self.kind == "slow":
                time.sleep(0.1)
            elif self.kind == "die":
                os.kill(os.getpid(), 9)
            elif self.kind == "reward":
                reward = np.nan
            elif self.kind == "huge":
                reward = 1e30  # finite, but no loss of it is
            else:
                obs[1] = np.inf
        return obs, reward, False, False, {"near": reward == 1}


gymnasium.register("faulty/Hold-v0", entry_point="faulty_tasks:Hold")
