"""The particle's physics: a point mass under a PD controller, and the two goals it must visit.

Every operation is in float32, so that episodes equal the published ones.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from env.core import EnvError

# the order of the original's observation dict when it is flattened
STATE_KEYS = ("pos_agent", "pos_first_goal", "pos_second_goal", "vel_agent")


@dataclass(frozen=True)
class ParticleParams:
    """Physics and task; the defaults are the published values."""

    n_dim: int = 2
    # control steps per episode
    n_steps: int = 50
    # seconds per integration step
    dt: float = 0.005
    # integration steps per control step (10: control at 20 Hz)
    repeat_actions: int = 10
    # gains of the PD controller
    k_p: float = 10.0
    k_v: float = 5.0
    # a goal counts as reached within this distance
    goal_distance: float = 0.05

    def __post_init__(self) -> None:
        for name in ("n_dim", "n_steps", "repeat_actions"):
            if getattr(self, name) < 1:
                raise EnvError(f"particle {name}: {getattr(self, name)}, expected at least 1")
        for name in ("dt", "goal_distance"):
            if getattr(self, name) <= 0:
                raise EnvError(f"particle {name}: {getattr(self, name)}, expected above 0")


class ParticleSim:
    """The point mass and its two goals, in native units.

    ``position``, ``velocity`` and both ``goals`` are float32 [N]. ``min_distances`` has the
    smallest distance to each goal, measured once per control step. ``path`` has the positions of
    all integration steps since the reset, and ``setpoints`` the actions.
    """

    def __init__(self, params: ParticleParams) -> None:
        self.params = params
        self.reset(np.random.RandomState(0))

    def reset(self, rng: np.random.RandomState) -> None:
        """Draw position, first goal and second goal, in that order, uniformly from [0, 1]^N."""
        n = self.params.n_dim
        self.position = rng.rand(n).astype(np.float32)
        self.goals = tuple(rng.rand(n).astype(np.float32) for _ in range(2))
        self.velocity = np.zeros(n, np.float32)
        self.min_distances = (np.inf, np.inf)
        self.path = [self.position]
        self.setpoints: list[np.ndarray] = []

    def step(self, setpoint: np.ndarray) -> None:
        """One control step towards ``setpoint`` float32 [N]; nothing is clipped."""
        p = self.params
        for _ in range(p.repeat_actions):
            u = p.k_p * (setpoint - self.position) - p.k_v * self.velocity
            # explicit Euler: the position moves by the old velocity
            self.position = self.position + self.velocity * p.dt
            self.velocity = self.velocity + u * p.dt
            self.path.append(self.position)
        self.setpoints.append(setpoint)
        first, second = self.min_distances
        self.min_distances = (min(first, self.distance(0)), min(second, self.distance(1)))

    def distance(self, goal: int) -> float:
        """Current distance to the first (0) or the second (1) goal."""
        return float(np.linalg.norm(self.position - self.goals[goal]))

    @property
    def reached_both(self) -> bool:
        """Both goals were reached at some control step (the condition of the reward)."""
        return max(self.min_distances) < self.params.goal_distance

    @property
    def succeeded(self) -> bool:
        """Both goals were reached, and the particle is at the second one now."""
        return self.reached_both and self.distance(1) < self.params.goal_distance

    def observation(self) -> dict[str, np.ndarray]:
        """float32 [N] each, by the original's keys."""
        values = (self.position, *self.goals, self.velocity)
        return dict(zip(STATE_KEYS, values, strict=True))
