"""Block pushing behind the environment interface.

Actions [-1, 1]^2 are displacements of the effector's target of up to 10 cm per control step
(10 Hz). The normalised variants have the published normalised actions. An episode depends only
on its seed: seed k starts the episode that the original starts after ``env.seed(k)``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from common_utils.specs import ArraySpec, EnvSpec
from common_utils.stacking import ObservationStacks
from env.block_pushing import normalized
from env.block_pushing.camera import Camera, width_of
from env.block_pushing.sim import CONTROL_HZ, BlockPushSim
from env.block_pushing.tasks import (
    Insert,
    Push,
    PushDiscontinuous,
    PushMultimodal,
    Reach,
    observation,
    state_vector,
)
from env.config import EnvConfig
from env.core import EnvError, ObsDict
from env.seeded import SeededEnv

SUITE = "block_pushing"
CAMERA = "rgb"
MAX_DELTA = 0.1  # metres per control step
TASKS: dict[str, type[Push]] = {
    "REACH": Reach,
    "PUSH": Push,
    "INSERT": Insert,
    "PUSH_DISCONTINUOUS": PushDiscontinuous,
    "PUSH_MULTIMODAL": PushMultimodal,
}
NORMALIZED = "_NORMALIZED"
# a normalised state holds one block and one target
CAN_BE_NORMALIZED = ("REACH", "PUSH", "INSERT")


@dataclass(frozen=True)
class TaskName:
    """The parts of a task's name: PUSH_NORMALIZED is ("PUSH", True)."""

    name: str
    normalized: bool = False

    def __str__(self) -> str:
        return self.name + NORMALIZED * self.normalized


def task_name(text: str) -> TaskName:
    """PUSH, PUSH_NORMALIZED, ... or the original's ids (BlockPush-v0, BlockPushMultimodal-v0)."""
    name = text
    if match := re.fullmatch(r"Block([A-Za-z]+)-v0", text):
        name = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", match.group(1)).removesuffix("_Rgb")
    name = name.upper()
    is_normalized = name.endswith(NORMALIZED)
    name = name.removesuffix(NORMALIZED)
    if name not in TASKS or (is_normalized and name not in CAN_BE_NORMALIZED):
        known = [*TASKS, *(n + NORMALIZED for n in CAN_BE_NORMALIZED)]
        raise EnvError(f"block_pushing has no task '{text}'; expected one of {', '.join(known)}")
    return TaskName(name, is_normalized)


class BlockPushEnv(SeededEnv):
    """One block task.

    Delivers ``state`` float32 [D * state_stack] (the task's keys in alphabetical order: 10
    numbers with one block and one target, 13 with two targets, 16 with two of both) with
    ``use_state``, and the camera "rgb" uint8 [3 * obs_stack, H, 4/3 H] with H ``rl_image_size``.
    """

    control_hz = CONTROL_HZ

    @classmethod
    def control_rate(cls, cfg: EnvConfig) -> float | None:
        """Control steps per second."""
        return CONTROL_HZ

    def __init__(self, cfg: EnvConfig) -> None:
        self.task = task_name(cfg.task)
        if unknown := [c for c in cfg.cameras if c != CAMERA]:
            raise EnvError(
                f"cameras: {unknown}; block_pushing has ['{CAMERA}'], expected no other "
                "(the option is rl_camera)"
            )
        self.cfg = cfg
        self.rules = TASKS[self.task.name]()
        if cfg.goal_tolerance > 0:
            self.rules = replace(self.rules, tolerance=cfg.goal_tolerance)
        self.sim = BlockPushSim(
            self.rules.blocks, self.rules.targets, shared_memory=bool(cfg.shared_memory)
        )
        self._camera = Camera(self.sim)
        self.spec = self._make_spec()
        self._stacks = ObservationStacks(self.spec.observations, cfg.stack_pad)

    @classmethod
    def oracle_options(cls, task: str) -> tuple[str, ...]:
        """Pictures, the server that shows the scene, and those of the task's expert."""
        rules = TASKS[task_name(task).name]
        return ("use_image_obs", "shared_memory", *rules.oracle_options)

    @classmethod
    def same_task(cls, a: str, b: str) -> bool:
        """Compares our names and the original's; EnvError for other names."""
        return task_name(a) == task_name(b)

    def _make_spec(self) -> EnvSpec:
        cfg, height = self.cfg, self.cfg.rl_image_size
        observations = {}
        for camera in cfg.cameras:
            shape = (3 * cfg.obs_stack, height, width_of(height))
            observations[camera] = ArraySpec(shape, "uint8", cfg.obs_stack)
        if cfg.use_state or not cfg.cameras:
            size = len(state_vector(self.observation()))
            observations["state"] = ArraySpec((size * cfg.state_stack,), "float32", cfg.state_stack)
        return EnvSpec(
            suite=SUITE,
            task=str(self.task),
            observations=observations,
            action_dim=2,
            horizon=min(self.rules.time_limit, cfg.episode_length),
            cameras=tuple(cfg.cameras),
        )

    # ------------------------------------------------------------------ actions

    def to_native(self, action: np.ndarray) -> np.ndarray:
        """[-1, 1] -> displacement float32 [2] in metres (the unit of recorded actions)."""
        action = np.asarray(action, np.float64)
        if self.task.normalized:
            return normalized.unnormalize_action(action).astype(np.float32)
        return (action * MAX_DELTA).astype(np.float32)

    def from_native(self, delta: np.ndarray) -> np.ndarray:
        """Displacement [2] in metres -> action float32 [2] in [-1, 1] (clipped)."""
        if self.task.normalized:
            action = normalized.normalize_action(delta)
        else:
            action = np.asarray(delta, np.float64) / MAX_DELTA
        return action.clip(-1, 1).astype(np.float32)

    # ------------------------------------------------------------- observations

    def plain_observation(self) -> dict[str, np.ndarray]:
        """The observation dict of experts, float64; normalised variants have the same one."""
        return observation(self.sim)

    def observation(self) -> dict[str, np.ndarray]:
        """The task's observation dict, float64, unstacked."""
        obs = observation(self.sim)
        return normalized.normalize_observation(obs) if self.task.normalized else obs

    def _picture(self, height: int) -> np.ndarray:
        if self._blind:
            return np.zeros((height, width_of(height), 3), np.uint8)
        return self._camera.picture(height, fast=self.cfg.render_quality == "fast")

    def _observe(self) -> ObsDict:
        frames = {}
        if CAMERA in self.spec.observations:
            picture = self._picture(self.cfg.rl_image_size)
            frames[CAMERA] = np.ascontiguousarray(picture.transpose(2, 0, 1))
        if "state" in self.spec.observations:
            frames["state"] = state_vector(self.observation())
        return self._stacks.push(frames)

    def _info(self, done: bool) -> dict[str, Any]:
        info: dict[str, Any] = {"success": done and self.rules.succeeded(self.sim)}
        if done:
            info["metrics"] = self.rules.metrics(self.sim)
        if self.cfg.record_images:
            info["images"] = {CAMERA: self.render()}
        return info

    def render(self, camera: str | None = None) -> np.ndarray:
        """Upright image uint8 [image_size, 4/3 image_size, 3]."""
        if camera not in (None, CAMERA):
            raise EnvError(f"camera: '{camera}'; block_pushing has '{CAMERA}'")
        return self._picture(self.cfg.image_size)

    # ------------------------------------------------------------------ episode

    def reset(self, *, seed: int) -> tuple[ObsDict, dict[str, Any]]:
        """Draw blocks and targets, let the blocks settle, and put the effector at its start."""
        seed = self._begin(seed)
        self._stacks.reset()
        self.sim.restart()
        self.rules.place(self.sim, np.random.RandomState(seed))
        self.sim.settle()
        self.rules.start(self.sim)
        return self._observe(), self._info(False)

    def step(self, action: np.ndarray) -> tuple[ObsDict, float, bool, bool, dict[str, Any]]:
        """One control step. Success is checked when the episode ends."""
        self.sim.move(self.to_native(self._take(action)))
        reward, reached = self.rules.advance(self.sim)
        terminated, truncated = self._end(reached and bool(self.cfg.end_on_success))
        reward *= self.cfg.env_reward_scale
        if self.task.normalized:
            reward *= normalized.REWARD_SCALE
        return self._observe(), reward, terminated, truncated, self._info(terminated or truncated)

    def close(self) -> None:
        """Disconnect from the physics server; safe to call twice."""
        self.sim.close()
