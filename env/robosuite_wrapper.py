"""``PixelRobosuite``: the original program's class, over ``env.robosuite``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from env.config import EnvConfig
from env.core import EnvError, ObsDict
from env.original_api import OriginalApi
from env.robosuite.env import DEFAULT_CAMERA, RobosuiteEnv
from env.robosuite.sim import task_named

if TYPE_CHECKING:
    import torch


class PixelRobosuite(OriginalApi):
    """The documented class of the original program: its constructor and its tuples.

    ``reset() -> (obs, image_obs)``; ``step(action) -> (obs, reward, terminal, success,
    image_obs)``, with one observation key per camera of ``rl_cameras``, "prop" and, with
    ``use_state``, "state". ``image_obs`` holds the big images of ``camera_names``.
    """

    def __init__(
        self,
        env_name: str,
        robots: list[str],
        episode_length: int,
        *,
        reward_shaping: bool = False,
        image_size: int = 224,
        rl_image_size: int = 96,
        device: str = "auto",
        camera_names: Sequence[str] = (DEFAULT_CAMERA,),
        rl_cameras: Sequence[str] = (DEFAULT_CAMERA,),
        env_reward_scale: float = 1.0,
        end_on_success: bool = True,
        use_state: bool = False,
        obs_stack: int = 1,
        state_stack: int = 1,
        prop_stack: int = 1,
        cond_action: int = 0,
        flip_image: bool = True,
        ctrl_delta: bool = True,
        record_sim_state: bool = False,
        render_quality: str = "faithful",
        seed: int = 0,
    ) -> None:
        expected = list(task_named(env_name).robots)
        if robots and list(robots) != expected:
            raise EnvError(f"robots: {robots}, expected {expected} for {env_name}")
        if reward_shaping:
            raise EnvError("reward_shaping: 1; only the sparse reward is offered")
        if not flip_image:
            raise EnvError("flip_image: 0; pictures are always upright")
        self._shown = list(camera_names)
        self._seen = [] if use_state else list(rl_cameras)
        cfg = EnvConfig(
            suite="robosuite",
            task=env_name,
            cameras=self._seen,
            image_size=image_size,
            rl_image_size=rl_image_size,
            obs_stack=obs_stack,
            state_stack=state_stack,
            prop_stack=prop_stack,
            use_state=int(use_state),
            episode_length=episode_length,
            end_on_success=int(end_on_success),
            env_reward_scale=env_reward_scale,
            render_quality="fast" if render_quality == "fast" else "faithful",
            ctrl_delta=int(ctrl_delta),
            record_sim_state=int(record_sim_state),
        )
        super().__init__(RobosuiteEnv(cfg), device=device, rename={}, seed=seed)
        for camera in self._shown:
            self.env._check_camera(camera)
        self._cond_action = cond_action

    @property
    def observation_shape(self) -> tuple[int, ...]:
        """Shape of the first camera's image, or of the state."""
        shape: tuple[int, ...]
        shape = self.env.spec.observations[self._seen[0] if self._seen else "state"].shape
        return shape

    def _images(self, info: dict[str, Any]) -> dict[str, np.ndarray]:
        return {c: self.env.render(c).transpose(2, 0, 1) for c in self._shown}

    def _tensors(self, obs: ObsDict) -> dict[str, torch.Tensor]:
        """With ``cond_action`` also "past_action" [A * cond_action], newest first."""
        if self._cond_action > 0:
            past = np.zeros((self._cond_action, self.action_dim), np.float32)
            done = self.env.state_dict()["actions"][-self._cond_action :]
            if done:
                past[: len(done)] = done[::-1]
            obs = obs | {"past_action": past.ravel()}
        return super()._tensors(obs)
