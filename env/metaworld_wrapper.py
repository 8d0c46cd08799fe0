"""``PixelMetaWorld``: the original program's class, over ``env.metaworld``."""

from __future__ import annotations

import numpy as np

from env.config import EnvConfig
from env.core import EnvError
from env.metaworld.env import MetaWorldEnv
from env.metaworld.expert import MetaWorldExpert
from env.original_api import OriginalApi


class PixelMetaWorld(OriginalApi):
    """The documented class of the original program: its constructor and its tuples.

    ``reset() -> (obs, image_obs)``; ``step(action) -> (obs, reward, terminal, success,
    image_obs)``, with observation keys "obs" (the image of ``rl_camera``), "prop", "state".
    """

    def __init__(
        self,
        env_name: str,
        robots: list[str],
        episode_length: int,
        action_repeat: int,
        frame_stack: int,
        obs_stack: int,
        *,
        rl_image_size: int = 96,
        device: str = "auto",
        camera_names: list[str] | None = None,
        rl_camera: str = "corner2",
        env_reward_scale: float = 1.0,
        end_on_success: bool = True,
        use_state: bool = False,
        reward_shaping: bool = False,
        image_size: int = 224,
        render_quality: str = "faithful",
        seed: int = 0,
    ) -> None:
        if robots and list(robots) != ["Sawyer"]:
            raise EnvError(f"robots: {robots}, expected ['Sawyer'] for Meta-World")
        if reward_shaping:
            raise EnvError("reward_shaping: 1; only the sparse reward is offered")
        if frame_stack > 1 and obs_stack > 1:
            raise EnvError("frame_stack and obs_stack: set only one above 1")
        cameras = ["corner2"] if camera_names is None else list(camera_names)
        cfg = EnvConfig(
            suite="metaworld",
            task=env_name,
            cameras=cameras,
            image_size=image_size,
            rl_image_size=rl_image_size,
            obs_stack=max(frame_stack, obs_stack),
            use_state=int(use_state),
            episode_length=episode_length,
            action_repeat=action_repeat,
            end_on_success=int(end_on_success),
            env_reward_scale=env_reward_scale,
            render_quality="fast" if render_quality == "fast" else "faithful",
            record_images=int(bool(cameras)),
        )
        rename = {rl_camera: "obs"} if rl_camera in cameras else {}
        super().__init__(MetaWorldEnv(cfg), device=device, rename=rename, seed=seed)
        self._expert: MetaWorldExpert | None = None

    def get_heuristic_action(self, clip: bool = True) -> np.ndarray:
        """Action [4] of Meta-World's scripted policy for the current state."""
        if self._expert is None:
            self._expert = MetaWorldExpert(self.env)
        return self._expert.plain(clip)
