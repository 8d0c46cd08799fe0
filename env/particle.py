"""The N-dimensional particle of Implicit Behavioral Cloning (section 4.1; Figure 6).

A point mass under a PD controller must visit two goals in order. The action is the controller's
set-point: native range [0, 1]^N, mapped here from the framework's [-1, 1]. An episode always
lasts ``n_steps`` control steps (50); reward and success are given at its last one.
Everything is float32, operation by operation, so that episodes repeat the published ones.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from common_utils.specs import ArraySpec, EnvSpec
from env.core import EnvError, ObsDict
from env.seeded import SeededEnv
from env.stacking import Stacker

if TYPE_CHECKING:
    from env.factory import EnvConfig

SUITE = "particle"
# the order of the original's observation dict when it is flattened
STATE_KEYS = ("pos_agent", "pos_first_goal", "pos_second_goal", "vel_agent")


@dataclass(frozen=True)
class ParticleParams:
    """Physics and task; the defaults are the published ones."""

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
    # within this distance a goal counts as reached
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

    ``position``, ``velocity`` and both ``goals`` float32 [N]; ``min_distances`` the smallest
    distance to each goal, taken once per control step; ``path`` the positions of all
    integration steps since the reset; ``setpoints`` the actions.
    """

    def __init__(self, params: ParticleParams) -> None:
        self.params = params
        self.reset(np.random.RandomState(0))

    def reset(self, rng: np.random.RandomState) -> None:
        """Position, first goal, second goal: uniform in [0, 1]^N, drawn in that order."""
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
        """Present distance to the first (0) or the second (1) goal."""
        return float(np.linalg.norm(self.position - self.goals[goal]))

    @property
    def reached_both(self) -> bool:
        """Both goals were reached at some control step (what the reward asks for)."""
        return max(self.min_distances) < self.params.goal_distance

    @property
    def succeeded(self) -> bool:
        """Both goals were reached, and the particle is at the second one now."""
        return self.reached_both and self.distance(1) < self.params.goal_distance

    def observation(self) -> dict[str, np.ndarray]:
        """float32 [N] each, by the original's keys."""
        values = (self.position, *self.goals, self.velocity)
        return dict(zip(STATE_KEYS, values, strict=True))


def n_dim_of(task: str) -> int:
    """PARTICLE -> 2, PARTICLE_16d -> 16 (also Particle-v0, the original's registered id)."""
    match = re.fullmatch(r"particle(?:_(\d+)d)?(?:-v0)?", task.lower())
    if match is None or match.group(1) == "0":
        raise EnvError(f"task '{task}' is no particle task; expected PARTICLE or PARTICLE_{{N}}d")
    return int(match.group(1) or 2)


class ParticleEnv(SeededEnv):
    """The particle behind the environment interface.

    Delivers ``state`` float32 [4N * state_stack]: position, first goal, second goal, velocity
    (left out with ``hide_velocity``: 3N). The episode ends after ``n_steps`` control steps
    (``episode_length`` where that is shorter).
    """

    def __init__(self, cfg: EnvConfig, params: ParticleParams | None = None) -> None:
        if cfg.cameras:
            raise EnvError(f"cameras: {cfg.cameras}; the particle has states only")
        self.cfg = cfg
        params = params or ParticleParams(n_dim_of(cfg.task))
        if cfg.goal_tolerance > 0:
            params = replace(params, goal_distance=cfg.goal_tolerance)
        self.sim = ParticleSim(params)
        self.keys = STATE_KEYS[:3] if cfg.hide_velocity else STATE_KEYS
        self._stacker = Stacker(cfg.state_stack, cfg.stack_pad)
        shape = (len(self.keys) * params.n_dim * cfg.state_stack,)
        self.spec = EnvSpec(
            suite=SUITE,
            task=f"PARTICLE_{params.n_dim}d",
            observations={"state": ArraySpec(shape, "float32", cfg.state_stack)},
            action_dim=params.n_dim,
            horizon=min(params.n_steps, cfg.episode_length),
        )

    # actions at the border of the framework lie in [-1, 1]
    @staticmethod
    def to_native(action: np.ndarray) -> np.ndarray:
        """[-1, 1] -> set-point float32 [N] in [0, 1]."""
        return ((np.asarray(action, np.float64) + 1) / 2).astype(np.float32)

    @staticmethod
    def from_native(setpoint: np.ndarray) -> np.ndarray:
        """Set-point in [0, 1] -> action float32 [N] in [-1, 1]."""
        return (np.asarray(setpoint, np.float64) * 2 - 1).astype(np.float32)

    def _observe(self) -> ObsDict:
        values = self.sim.observation()
        return {"state": self._stacker.push(np.concatenate([values[k] for k in self.keys]))}

    def _info(self, done: bool) -> dict[str, Any]:
        sim = self.sim
        info: dict[str, Any] = {"success": done and sim.succeeded}
        if done:
            info["metrics"] = {
                "min_dist_first_goal": sim.min_distances[0],
                "min_dist_second_goal": sim.min_distances[1],
                "final_dist_second_goal": sim.distance(1),
            }
        if self.cfg.record_images:
            info["images"] = {"plot": self.render()}
        return info

    def reset(self, *, seed: int) -> tuple[ObsDict, dict[str, Any]]:
        """The episode that the original plays first after ``env.seed(seed)``."""
        self.sim.reset(np.random.RandomState(self._begin(seed)))
        self._stacker.reset()
        return self._observe(), self._info(False)

    def step(self, action: np.ndarray) -> tuple[ObsDict, float, bool, bool, dict[str, Any]]:
        """One control step (20 Hz); the reward, 0 or 1, comes with the last one."""
        self.sim.step(self.to_native(self._take(action)))
        terminated, truncated = self._end(False)
        reward = float(truncated and self.sim.reached_both) * self.cfg.env_reward_scale
        return self._observe(), reward, terminated, truncated, self._info(truncated)

    def render(self, camera: str | None = None) -> np.ndarray:
        """Picture uint8 [image_size, image_size, 3] of the path so far.

        2-D: the plane. Otherwise: each coordinate over time.
        """
        from env.particle_picture import picture

        return picture(self.sim, self.cfg.image_size)

    def close(self) -> None:
        """Nothing to free."""


class ParticleOracle:
    """The scripted expert: the first goal is the set-point, then the second one.

    Args:
        env: the environment it acts in.
        wait_at_first_goal: control steps (counted, not necessarily in a row) within
            ``goal_threshold`` of the first goal before it moves on.
        random_order: visit the goals in a random order (multimodal demonstrations).
        noise_std: of Gaussian noise on the set-point, native units.
    """

    def __init__(
        self,
        env: ParticleEnv,
        wait_at_first_goal: int = 1,
        goal_threshold: float = 0.01,
        random_order: bool = False,
        noise_std: float = 0.0,
    ) -> None:
        self.env = env
        self.wait, self.threshold = wait_at_first_goal, goal_threshold
        self.random_order, self.noise_std = random_order, noise_std
        self.reset(np.random.default_rng(0))

    def reset(self, rng: np.random.Generator) -> None:
        """Before each episode, after the environment's reset."""
        self._rng = rng
        flip = self.random_order and bool(rng.integers(2))
        self._order = (1, 0) if flip else (0, 1)
        self._steps_at_goal = 0

    def action(self) -> np.ndarray:
        """Action float32 [N] in [-1, 1] for the environment's present state."""
        sim, (first, second) = self.env.sim, self._order
        if sim.distance(first) < self.threshold:
            self._steps_at_goal += 1
        goal = second if self._steps_at_goal >= self.wait else first
        setpoint = sim.goals[goal]
        if self.noise_std > 0:
            setpoint = setpoint + self._rng.normal(0.0, self.noise_std, setpoint.shape)
        return self.env.from_native(np.clip(setpoint, 0, 1))
