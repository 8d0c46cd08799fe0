"""robosuite tasks behind the environment interface.

The reward is sparse (1 at success), and a control step lasts 50 ms. An episode depends only on
its seed and actions. States need no OpenGL; ``env.rendering`` draws images.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from common_utils.env_args import arm_controller, version_numbers
from common_utils.gl import load_triton_before_mesa
from common_utils.robomimic_keys import STATE_DIMS
from common_utils.specs import EnvSpec
from common_utils.stacking import ObservationStacks
from common_utils.success_rule import SparseReward, SuccessRule
from env.config import EnvConfig, arm_observations
from env.core import EnvError, ObsDict
from env.robosuite.obs import PROP_DIM, observe, prop_vector, state_vector
from env.robosuite.replay import restore_state
from env.robosuite.robomimic_args import controller_differences, model_xml, robomimic_env_args
from env.robosuite.sim import (
    CONTROL_FREQ,
    camera_names,
    make_sim,
    reset_sim,
    sim_state,
    step_sim,
    task_named,
)
from env.seeded import SeededEnv

COLLISION_GROUP = 0  # robosuite's collision shapes, which lie over the visual ones
DEFAULT_CAMERA = "agentview"
# cameras in files of successes, for agents that learn from pixels
RECORDED_CAMERAS = ("agentview", "robot0_eye_in_hand")


class RobosuiteEnv(SeededEnv):
    """One robosuite task.

    Delivers ``{camera}`` uint8 [3 * obs_stack, s, s] upright, ``prop`` (robot0's hand position,
    quaternion and fingers) float32 [9 * prop_stack], and with ``use_state`` ``state`` float32
    [STATE_DIMS[task] * state_stack]. With ``record_sim_state``, ``info["sim_state"]`` is the
    flattened simulator state float64 [1 + nq + nv] of the observation. ``info["recorded"]`` is
    then what robomimic's files hold: this state, its observations by name and, at success, the
    episode's model.
    """

    prop_dim = PROP_DIM

    def __init__(self, cfg: EnvConfig) -> None:
        load_triton_before_mesa(rendering=bool(cfg.cameras))
        if cfg.action_repeat != 1:
            raise EnvError(f"action_repeat: {cfg.action_repeat}, expected 1 for robosuite")
        self.cfg = cfg
        self.task = task_named(cfg.task)
        self._sim: Any = make_sim(cfg.task, delta=bool(cfg.ctrl_delta))
        if not cfg.ctrl_delta:
            self._action_limit = np.inf  # poses, not shares of a range
        self.spec = self._make_spec()
        self._stacks = ObservationStacks(self.spec.observations, cfg.stack_pad)
        self._renderer: Any = None
        self._pictures: dict[str, np.ndarray] = {}
        for camera in cfg.cameras:  # no GL, wrong camera: report it now
            self._check_camera(camera)
        if cfg.cameras:
            self._picture(cfg.cameras[0])
        self.raw_obs: dict[str, np.ndarray] = {}

    def _make_spec(self) -> EnvSpec:
        cfg = self.cfg
        return EnvSpec(
            suite="robosuite",
            task=self.task.name,
            observations=arm_observations(cfg, PROP_DIM, STATE_DIMS[self.task.name]),
            action_dim=self.task.action_dim,
            horizon=cfg.episode_length,
            cameras=tuple(cfg.cameras),
        )

    @classmethod
    def env_args(cls, cfg: EnvConfig) -> dict[str, Any]:
        """robomimic's description, with the names of robosuite 1.4."""
        delta = bool(cfg.ctrl_delta)
        args = robomimic_env_args(cfg.task, cfg.cameras, cfg.rl_image_size, delta=delta)
        if cfg.cameras:
            args["env_kwargs"]["render_quality"] = cfg.render_quality
        return args

    @classmethod
    def recording(cls, cfg: EnvConfig) -> EnvConfig:
        """Add simulator states and, if there are cameras, those of RECORDED_CAMERAS."""
        cameras = list(dict.fromkeys([*cfg.cameras, *RECORDED_CAMERAS]))
        return replace(cfg, record_sim_state=1, cameras=cameras if cfg.cameras else [])

    @classmethod
    def adopt(cls, cfg: EnvConfig, args: Mapping[str, Any], action_repeat: int) -> list[str]:
        """Actions must have the same meaning here as in the recording."""
        controller = arm_controller(args)
        cfg.ctrl_delta = int(controller["control_delta"])
        differences = controller_differences(controller)
        robots = (args.get("env_kwargs") or {}).get("robots", [])
        two_arms = not isinstance(robots, str) and len(robots) > 1
        if two_arms and cfg.ctrl_delta and controller["input_ref_frame"] == "world":
            differences.append(
                "relative actions are along the world's axes, but here along each robot's base "
                "(python -m tools.dataset_states_to_obs converts them)"
            )
        return super().adopt(cfg, args, action_repeat) + differences

    @classmethod
    def control_rate(cls, cfg: EnvConfig) -> float | None:
        """Control steps per second."""
        return float(CONTROL_FREQ)

    @classmethod
    def picture_note(cls, args: Mapping[str, Any]) -> str:
        """Measured: release/results/robosuite/pictures_1.4."""
        version = str(args.get("env_version", ""))
        if not version or version_numbers(version) >= (1, 5):
            return ""
        return (
            f"pictures were drawn by robosuite {version}: evaluations draw them otherwise, by 0.2 "
            "to 0.8 of 255 on average at the size of the file (env.image_size), by up to 4.2 if "
            "drawn larger and reduced (tools.dataset_states_to_obs draws the file's again)"
        )

    @classmethod
    def success_rule(cls, cfg: EnvConfig) -> SuccessRule:
        """The reward is 1 at success and 0 otherwise."""
        return SparseReward(cfg.suite)

    @property
    def sim(self) -> Any:
        """The robosuite environment itself (``make_sim``), which scripted experts read."""
        return self._sim

    # ----------------------------------------------------------------- images

    def _check_camera(self, camera: str) -> None:
        known = camera_names(self._sim)
        if camera not in known:
            raise EnvError(
                f"camera '{camera}' does not exist in {self.task.name}; expected one of "
                f"{', '.join(known)}"
            )

    def draw(self, camera: str) -> np.ndarray:
        """uint8 [image_size, image_size, 3], upright, rendered now."""
        from env.rendering import Renderer

        sim, size = self._sim.sim, self.cfg.image_size
        if self._renderer is None:
            quality = self.cfg.render_quality
            self._renderer = Renderer(sim.model._model, size, size, quality, (COLLISION_GROUP,))
        started = time.perf_counter()
        picture = self._renderer.render(sim.data._data, self._renderer.camera_id(camera))
        self.render_seconds += time.perf_counter() - started
        return picture

    def _picture(self, camera: str) -> np.ndarray:
        """uint8 [image_size, image_size, 3], upright; drawn once per step."""
        if self._blind:
            return np.zeros((self.cfg.image_size, self.cfg.image_size, 3), np.uint8)
        if camera not in self._pictures:
            self._pictures[camera] = self.draw(camera)
        return self._pictures[camera]

    def render(self, camera: str | None = None) -> np.ndarray:
        """Upright image uint8 [image_size, image_size, 3]."""
        camera = camera or (self.cfg.cameras[0] if self.cfg.cameras else DEFAULT_CAMERA)
        return np.ascontiguousarray(self._picture(camera))

    # ------------------------------------------------------------------ episode

    def _observe(self) -> ObsDict:
        from env.rendering import resize_picture

        cfg = self.cfg
        self._pictures.clear()
        self.raw_obs = observe(self._sim)
        frames = {
            c: np.ascontiguousarray(
                resize_picture(self._picture(c), cfg.rl_image_size).transpose(2, 0, 1)
            )
            for c in cfg.cameras
        }
        frames["prop"] = prop_vector(self.raw_obs)
        if cfg.use_state:
            frames["state"] = state_vector(self.task.name, self.raw_obs)
        return self._stacks.push(frames)

    def _info(self, success: bool) -> dict[str, Any]:
        info: dict[str, Any] = {"success": success}
        if self.cfg.record_images:
            cameras = self.cfg.cameras or [DEFAULT_CAMERA]
            info["images"] = {c: self.render(c) for c in cameras}
        if self.cfg.record_sim_state:
            info["sim_state"] = sim_state(self._sim)
            info["recorded"] = {"sim_state": info["sim_state"], **self.raw_obs}
            if success:
                info["recorded"]["model_file"] = model_xml(self._sim)
        return info

    def reset(self, *, seed: int) -> tuple[ObsDict, dict[str, Any]]:
        """Place objects and arm according to ``seed``."""
        seed = self._begin(seed)
        self._stacks.reset()
        reset_sim(self._sim, seed)
        return self._observe(), self._info(False)

    def observe_state(self, state: np.ndarray, *, live: bool) -> tuple[ObsDict, float]:
        """Observation (the only one in its stacks) and reward of a recorded simulator state.

        ``live``: as seen right after a control step, see ``restore_state``. The current episode is
        lost.
        """
        restore_state(self._sim, state, live=live)
        self._stacks.reset()
        return self._observe(), float(self._sim.reward()) * self.cfg.env_reward_scale

    def step(self, action: np.ndarray) -> tuple[ObsDict, float, bool, bool, dict[str, Any]]:
        """One control step of 50 ms."""
        action = self._take(action)
        success = step_sim(self._sim, action)
        terminated, truncated = self._end(success and bool(self.cfg.end_on_success))
        reward = float(success) * self.cfg.env_reward_scale
        return self._observe(), reward, terminated, truncated, self._info(success)

    def close(self) -> None:
        """Free the renderer and the simulator."""
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None
        if self._sim is not None:
            # its parts refer to each other: without a collection now, a simulation of two arms
            # keeps 4 GiB of address space, and a process with several cannot fork
            self._sim = None
            gc.collect()
