"""An environment of this project as a ``gymnasium.Env``, so that it can be served."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Dict

from env.core import Env, EnvError, ObsDict


class GymView(gymnasium.Env):
    """``env`` with gymnasium's spaces: actions in [-1, 1], cameras as uint8 [H, W, 3].

    Raises EnvError for stacked observations: whoever receives them stacks them.
    """

    render_mode = "rgb_array"

    def __init__(self, env: Env) -> None:
        self.env, spec = env, env.spec
        stacked = [key for key, array in spec.observations.items() if array.stack > 1]
        if stacked:
            raise EnvError(
                f"{spec.suite}/{spec.task}: {', '.join(stacked)} are stacked, expected single "
                "steps (obs_stack, prop_stack, state_stack 1)"
            )
        self.metadata = {"render_modes": ["rgb_array"], "render_fps": env.control_hz}
        self.action_space = Box(-1, 1, (spec.action_dim,), np.float32)
        spaces: dict[str, gymnasium.Space[Any]] = {}
        for key, array in spec.observations.items():
            if key in spec.cameras:
                spaces[key] = Box(0, 255, (*array.shape[1:], 3), np.uint8)
            else:
                spaces[key] = Box(-np.inf, np.inf, array.shape, np.float32)
        self.observation_space = Dict(spaces)

    def _turned(self, obs: ObsDict) -> ObsDict:
        cameras = self.env.spec.cameras
        return {k: v.transpose(1, 2, 0) if k in cameras else v for k, v in obs.items()}

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[ObsDict, dict[str, Any]]:
        """Start the episode that belongs to ``seed``."""
        obs, info = self.env.reset(seed=0 if seed is None else seed)
        return self._turned(obs), info

    def step(self, action: np.ndarray) -> tuple[ObsDict, float, bool, bool, dict[str, Any]]:
        """One control step; ``info["success"]`` is the task's."""
        obs, reward, terminated, truncated, info = self.env.step(action)
        return self._turned(obs), reward, terminated, truncated, info

    def render(self) -> Any:
        """uint8 [H, W, 3]."""
        return self.env.render()

    def close(self) -> None:
        """Free the simulator."""
        self.env.close()
