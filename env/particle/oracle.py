"""The particle's scripted expert."""

from __future__ import annotations

import numpy as np

from env.core import Expert
from env.particle.env import ParticleEnv


class ParticleOracle(Expert):
    """The scripted expert: its set-point is the first goal, then the second goal.

    Args:
        env: the environment it acts in.
        noise: standard deviation of Gaussian noise on the set-point, native units.
        wait_at_first_goal: number of control steps (not necessarily in a row) within
            ``goal_threshold`` of the first goal before it moves on.
        random_order: visit the goals in a random order (multimodal demonstrations).
    """

    def __init__(
        self,
        env: ParticleEnv,
        noise: float = 0.0,
        *,
        wait_at_first_goal: int = 1,
        goal_threshold: float = 0.01,
        random_order: bool = False,
    ) -> None:
        self.env = env
        self.wait, self.threshold = wait_at_first_goal, goal_threshold
        self.random_order, self.noise = random_order, noise
        self.reset(np.random.default_rng(0))

    def reset(self, rng: np.random.Generator) -> None:
        """Called before each episode, after the environment's reset."""
        self._rng = rng
        flip = self.random_order and bool(rng.integers(2))
        self._order = (1, 0) if flip else (0, 1)
        self._steps_at_goal = 0

    def act(self) -> np.ndarray:
        """Action float32 [N] in [-1, 1] for the environment's current state."""
        sim, (first, second) = self.env.sim, self._order
        if sim.distance(first) < self.threshold:
            self._steps_at_goal += 1
        goal = second if self._steps_at_goal >= self.wait else first
        setpoint = sim.goals[goal]
        if self.noise > 0:
            setpoint = setpoint + self._rng.normal(0.0, self.noise, setpoint.shape)
        return self.env.from_native(np.clip(setpoint, 0, 1))
