"""Meta-World (metaworld 3.1.1) behind the environment interface.

A control step repeats the action ``action_repeat`` times. The reward is sparse (1 at success).
The goal is visible in the state and random at each reset. An episode depends only on its seed,
not on what the environment played before.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from common_utils.gl import load_triton_before_mesa
from common_utils.specs import EnvSpec
from common_utils.stacking import ObservationStacks
from common_utils.success_rule import SparseReward, SuccessRule
from env.config import EnvConfig, arm_observations
from env.core import EnvError, ObsDict
from env.seeded import SeededEnv

STATE_DIM, PROP_DIM, ACTION_DIM = 39, 4, 4
# corner2 as the original program moved it; Meta-World's own is closer to the table's corner
CORNER2_POS = (0.75, 0.075, 0.7)
SIMULATOR_HZ = 80.0  # Meta-World's own steps: five of MuJoCo, each of 2.5 ms
# Meta-World's corner cameras are upside down: rolled by 180 degrees about their viewing axes
ROLLED_CAMERAS = ("corner", "corner2", "corner3", "corner4")


def task_id(name: str) -> str:
    """Assembly, assembly or assembly-v3 -> assembly-v3; otherwise an EnvError with all tasks."""
    from metaworld.env_dict import ALL_V3_ENVIRONMENTS

    words = re.sub(r"(?<=[a-z])(?=[A-Z])", "-", name).lower()
    words = re.sub(r"-?v[23]$", "", words.replace("_", "-"))
    if f"{words}-v3" not in ALL_V3_ENVIRONMENTS:
        known = ", ".join(sorted(k.removesuffix("-v3") for k in ALL_V3_ENVIRONMENTS))
        raise EnvError(f"Meta-World has no task '{name}'; expected one of {known}")
    return f"{words}-v3"


class MetaWorldEnv(SeededEnv):
    """One Meta-World task.

    Delivers ``{camera}`` uint8 [3 * obs_stack, s, s] upright, ``prop`` (hand position and
    gripper opening) float32 [4 * prop_stack], and with ``use_state`` ``state`` float32
    [39 * state_stack].
    """

    prop_dim = PROP_DIM

    def __init__(self, cfg: EnvConfig) -> None:
        load_triton_before_mesa(rendering=bool(cfg.cameras))
        from metaworld.env_dict import ALL_V3_ENVIRONMENTS_GOAL_OBSERVABLE as TASKS

        self.cfg = cfg
        self.task = task_id(cfg.task)
        # without a seed, its constructor would draw from numpy's global generator
        constructors: dict[str, Any] = TASKS  # their types hide the seed argument
        self._sim: Any = constructors[f"{self.task}-goal-observable"](seed=0)
        self._sim._freeze_rand_vec = False  # a random goal at each reset ...
        self._sim.seeded_rand_vec = True  # ... from the seed of that reset
        # Meta-World's own limit counts simulator steps; ours ends the episode before it
        self._sim.max_path_length = cfg.episode_length * cfg.action_repeat + 2
        self.spec = self._make_spec()
        self._stacks = ObservationStacks(self.spec.observations, cfg.stack_pad)
        self._renderers: dict[int, Any] = {}
        self._move_corner2()
        if cfg.cameras:
            self._picture(cfg.cameras[0], cfg.rl_image_size)  # no GL, wrong camera: report it now
        self.raw_state = np.zeros(STATE_DIM)

    def _make_spec(self) -> EnvSpec:
        cfg = self.cfg
        return EnvSpec(
            suite="metaworld",
            task=self.task,
            observations=arm_observations(cfg, PROP_DIM, STATE_DIM),
            action_dim=ACTION_DIM,
            horizon=cfg.episode_length,
            cameras=tuple(cfg.cameras),
        )

    @classmethod
    def adopt(cls, cfg: EnvConfig, args: Mapping[str, Any], action_repeat: int) -> list[str]:
        """Repeat actions as the demonstrations did; the reader must be set to the same repeat."""
        cfg.action_repeat = action_repeat
        stored = (args.get("env_kwargs") or {}).get("action_repeat")
        notes = super().adopt(cfg, args, action_repeat)
        if stored is not None and stored not in (action_repeat, str(action_repeat)):
            notes.append(
                f"env_kwargs.action_repeat: the demonstrations use {stored}, but action_repeat "
                f"(dataset.action_repeat of a BC run) is {action_repeat}"
            )
        return notes

    @classmethod
    def control_rate(cls, cfg: EnvConfig) -> float | None:
        """Control steps per second; each is ``action_repeat`` steps of the simulator."""
        return SIMULATOR_HZ / cfg.action_repeat

    @classmethod
    def success_rule(cls, cfg: EnvConfig) -> SuccessRule:
        """The reward is 1 at success and 0 otherwise."""
        return SparseReward(cfg.suite)

    # ----------------------------------------------------------------- pictures

    def _move_corner2(self) -> None:
        import mujoco

        model = self._sim.model
        number = mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_CAMERA, "corner2")
        model.cam_pos[number] = CORNER2_POS

    def _picture(self, camera: str, size: int) -> np.ndarray:
        """uint8 [size, size, 3], upright."""
        from env.rendering import Renderer

        if self._blind:
            return np.zeros((size, size, 3), np.uint8)
        if size not in self._renderers:
            quality = self.cfg.render_quality
            self._renderers[size] = Renderer(self._sim.model, size, size, quality)
        renderer = self._renderers[size]
        started = time.perf_counter()
        picture = renderer.render(self._sim.data, renderer.camera_id(camera))
        self.render_seconds += time.perf_counter() - started
        return picture[::-1, ::-1] if camera in ROLLED_CAMERAS else picture

    def render(self, camera: str | None = None) -> np.ndarray:
        """Upright image uint8 [image_size, image_size, 3]."""
        camera = camera or (self.cfg.cameras[0] if self.cfg.cameras else "corner2")
        return np.ascontiguousarray(self._picture(camera, self.cfg.image_size))

    # ------------------------------------------------------------------ episode

    def _observe(self, state: np.ndarray) -> ObsDict:
        self.raw_state = state
        vector = state.astype(np.float32)
        frames = {
            c: np.ascontiguousarray(self._picture(c, self.cfg.rl_image_size).transpose(2, 0, 1))
            for c in self.cfg.cameras
        }
        frames["prop"] = vector[:PROP_DIM]
        if self.cfg.use_state:
            frames["state"] = vector
        return self._stacks.push(frames)

    def _info(self, success: bool) -> dict[str, Any]:
        info: dict[str, Any] = {"success": success}
        if self.cfg.record_images:
            cameras = self.cfg.cameras or ["corner2"]
            info["images"] = {c: self.render(c) for c in cameras}
        return info

    def reset(self, *, seed: int) -> tuple[ObsDict, dict[str, Any]]:
        """Reset, then one step of zero action, as in the original program."""
        seed = self._begin(seed)
        self._stacks.reset()
        self._sim.seed(seed)
        self._sim.reset()
        state = self._sim.step(np.zeros(ACTION_DIM))[0]
        return self._observe(state), self._info(False)

    def step(self, action: np.ndarray) -> tuple[ObsDict, float, bool, bool, dict[str, Any]]:
        """One control step; success is checked after its last simulator step."""
        action = self._take(action)
        for _ in range(self.cfg.action_repeat):
            state, _, _, _, sim_info = self._sim.step(action)
        success = bool(sim_info["success"])
        terminated, truncated = self._end(success and bool(self.cfg.end_on_success))
        reward = float(success) * self.cfg.env_reward_scale
        return self._observe(state), reward, terminated, truncated, self._info(success)

    def close(self) -> None:
        """Free the renderers and the simulator."""
        for renderer in self._renderers.values():
            renderer.close()
        self._renderers.clear()
        self._sim.close()
