"""A point at a control rate of 20 steps per second, which writes down when it was stepped.

The environment variable PACED names a folder. Its file ``times`` gets a line per step of training
(the process, seconds). If there is a file ``hang``, the next episode of training that comes to its
third step removes it and never takes that step: it sleeps in C, or
waits for a lock if the file says "lock".
"""

import os
import threading
import time
from pathlib import Path

import gymnasium
import numpy as np
from gymnasium.spaces import Box

PERIOD = 0.05
SEEDS_OF_TRAINING = 10**6  # larger ones


class Paced(gymnasium.Env):
    """Success at the time limit; the reward is the distance."""

    action_space = Box(-0.2, 0.2, (2,), np.float32)
    observation_space = Box(-2, 2, (2,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.folder, self.seed, self.steps = Path(os.environ["PACED"]), seed, 0
        self.point = self.np_random.uniform(-1, 1, 2).astype(np.float32)
        return self.point.copy(), {}

    def step(self, action):
        self.steps += 1
        hang = self.folder / "hang"
        if self.steps == 3 and self.seed > SEEDS_OF_TRAINING and hang.exists():
            kind = hang.read_text()
            hang.unlink()
            if kind == "lock":
                lock = threading.Lock()
                with lock, lock:  # never
                    pass
            time.sleep(600)
        time.sleep(PERIOD)
        if self.seed > SEEDS_OF_TRAINING:
            with open(self.folder / "times", "a") as file:
                file.write(f"{os.getpid()} {time.monotonic()}\n")
        self.point = np.clip(self.point + action, -2, 2)
        return self.point.copy(), float(np.abs(self.point).max()), False, False, {}


gymnasium.register("paced/Point-v0", entry_point="tests.train.paced_tasks:Paced")
