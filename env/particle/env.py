"""The N-dimensional particle of Implicit Behavioral Cloning (section 4.1; Figure 6).

A point mass under a PD controller must visit two goals in order. The action is the controller's
set-point: native range [0, 1]^N, mapped here from the framework's [-1, 1]. An episode always
lasts ``n_steps`` control steps (50). Reward and success come with the last one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from common_utils.specs import ArraySpec, EnvSpec
from common_utils.stacking import ObservationStacks
from env.config import EnvConfig
from env.core import EnvError, ObsDict
from env.particle.picture import picture
from env.particle.sim import STATE_KEYS, ParticleParams, ParticleSim
from env.seeded import SeededEnv

SUITE = "particle"


def n_dim_of(task: str) -> int:
    """PARTICLE -> 2, PARTICLE_16d -> 16 (also Particle-v0, the original's registered id)."""
    match = re.fullmatch(r"particle(?:_(\d+)d)?(?:-v0)?", task.lower())
    if match is None or match.group(1) == "0":
        raise EnvError(
            f"task '{task}' is not a particle task; expected PARTICLE or PARTICLE_{{N}}d"
        )
    return int(match.group(1) or 2)


class ParticleEnv(SeededEnv):
    """The particle behind the environment interface.

    Delivers ``state`` float32 [4N * state_stack]: position, first goal, second goal, velocity
    (left out with ``hide_velocity``: 3N). The episode ends after ``n_steps`` control steps
    (or ``episode_length``, if that is shorter).
    """

    # success requires the second goal at the end, the reward both goals in either order: the
    # original keeps ``random_order`` episodes by reward
    achieved_by_reward = True

    def __init__(self, cfg: EnvConfig, params: ParticleParams | None = None) -> None:
        if cfg.cameras:
            raise EnvError(f"cameras: {cfg.cameras}; the particle has states only: set use_state 1")
        self.cfg = cfg
        params = params or ParticleParams(n_dim_of(cfg.task))
        if cfg.goal_tolerance > 0:
            params = replace(params, goal_distance=cfg.goal_tolerance)
        self.sim = ParticleSim(params)
        self.keys = STATE_KEYS[:3] if cfg.hide_velocity else STATE_KEYS
        shape = (len(self.keys) * params.n_dim * cfg.state_stack,)
        self.spec = EnvSpec(
            suite=SUITE,
            task=f"PARTICLE_{params.n_dim}d",
            observations={"state": ArraySpec(shape, "float32", cfg.state_stack)},
            action_dim=params.n_dim,
            horizon=min(params.n_steps, cfg.episode_length),
        )
        self._stacks = ObservationStacks(self.spec.observations, cfg.stack_pad)

    @classmethod
    def oracle_options(cls, task: str) -> tuple[str, ...]:
        """Those of the particle's expert, and whether the velocity is seen."""
        n_dim_of(task)
        return ("wait_at_first_goal", "random_order", "hide_velocity")

    @classmethod
    def same_task(cls, a: str, b: str) -> bool:
        """The number of dimensions is the task; EnvError for other names."""
        return n_dim_of(a) == n_dim_of(b)

    @classmethod
    def adopt(cls, cfg: EnvConfig, args: Mapping[str, Any], action_repeat: int) -> list[str]:
        """Leave the velocity out if the demonstrations do."""
        if (args.get("env_kwargs") or {}).get("hide_velocity"):
            cfg.hide_velocity = 1
        return super().adopt(cfg, args, action_repeat)

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
        return self._stacks.push({"state": np.concatenate([values[k] for k in self.keys])})

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
        self._stacks.reset()
        return self._observe(), self._info(False)

    def step(self, action: np.ndarray) -> tuple[ObsDict, float, bool, bool, dict[str, Any]]:
        """One control step (20 Hz); the reward, 0 or 1, comes with the last one."""
        self.sim.step(self.to_native(self._take(action)))
        terminated, truncated = self._end(False)
        reward = float(truncated and self.sim.reached_both) * self.cfg.env_reward_scale
        return self._observe(), reward, terminated, truncated, self._info(truncated)

    def render(self, camera: str | None = None) -> np.ndarray:
        """Image uint8 [image_size, image_size, 3] of the path so far.

        In 2-D it shows the plane, otherwise each coordinate over time.
        """
        return picture(self.sim, self.cfg.image_size)

    def close(self) -> None:
        """Nothing to free."""
