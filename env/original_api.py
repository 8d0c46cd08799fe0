"""The original program's environment tuples, over any environment of this framework."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from common_utils.device import resolve_device
from common_utils.finite import check_action, check_observed
from env.core import Env, ObsDict

if TYPE_CHECKING:  # evaluation workers import this file and must not pay for torch
    import torch


class OriginalApi:
    """``reset() -> (obs, image_obs)``, ``step(a) -> (obs, reward, terminal, success, image_obs)``.

    Observations are tensors on ``device``; ``image_obs`` holds the big images, uint8
    [3, H, W] per camera. Episodes are seeded ``seed, seed + 1, ...`` unless ``reset`` gets a
    seed. Raises NonFiniteError for an action, observation or reward that is not finite.
    """

    def __init__(
        self, env: Any, *, device: str = "auto", rename: Mapping[str, str], seed: int = 0
    ) -> None:
        self.env = env
        self.device = resolve_device(device)
        self._rename = dict(rename)
        self._next_seed = seed
        self._seed, self._steps = seed, 0  # of the present episode

    @property
    def spec(self) -> Any:
        """The environment's EnvSpec (in its own key names)."""
        return self.env.spec

    @property
    def observation_shape(self) -> tuple[int, ...]:
        """Shape of the agent's main observation: the image, or the state if there is none."""
        observations = self.env.spec.observations
        image = next((k for k in self._rename), "state")
        return observations[image].shape

    @property
    def prop_shape(self) -> tuple[int, ...]:
        """Shape of "prop"."""
        return self.env.spec.observations["prop"].shape

    @property
    def action_dim(self) -> int:
        """A."""
        return int(self.env.spec.action_dim)

    def _tensors(self, obs: ObsDict) -> dict[str, torch.Tensor]:
        import torch

        return {self._rename.get(k, k): torch.from_numpy(v).to(self.device) for k, v in obs.items()}

    def _images(self, info: dict[str, Any]) -> dict[str, np.ndarray]:
        return {k: v.transpose(2, 0, 1) for k, v in info.get("images", {}).items()}

    def reset(
        self, seed: int | None = None
    ) -> tuple[dict[str, torch.Tensor], dict[str, np.ndarray]]:
        """Start an episode."""
        if seed is None:
            seed, self._next_seed = self._next_seed, self._next_seed + 1
        self._seed, self._steps = seed, 0
        obs, info = self.env.reset(seed=seed)
        check_observed(self.env.spec.task, seed, 0, obs)
        return self._tensors(obs), self._images(info)

    def step(
        self, action: torch.Tensor | np.ndarray
    ) -> tuple[dict[str, torch.Tensor], float, bool, bool, dict[str, np.ndarray]]:
        """One action [A], or several [n, A] played open loop until the episode ends."""
        array = action if isinstance(action, np.ndarray) else action.detach().cpu().numpy()
        actions = np.atleast_2d(np.asarray(array, np.float32))
        total, success, terminal = 0.0, False, False
        for single in actions:
            check_action(single, self._seed, self._steps)
            obs, reward, terminated, truncated, info = self.env.step(single)
            self._steps += 1
            check_observed(self.env.spec.task, self._seed, self._steps, obs, reward)
            total += reward
            success = success or bool(info["success"])
            terminal = terminated or truncated
            if terminal:
                break
        return self._tensors(obs), total, terminal, success, self._images(info)

    def close(self) -> None:
        """Free the simulator."""
        env: Env = self.env
        env.close()
