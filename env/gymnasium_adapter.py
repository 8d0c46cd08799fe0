"""Any gymnasium.Env behind the environment interface: bring your own environment.

It must have a Box action space with finite bounds, and observations that are one Box or a Dict
of Boxes. Cameras are observation keys with uint8 [H, W, 3] images, or "render" for
``env.render()``. An episode must follow from ``reset(seed=...)`` and the actions alone.
docs/environments.md has a complete example.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from common_utils.gl import best_backend, load_triton_before_mesa
from common_utils.specs import ArraySpec, EnvSpec
from common_utils.stacking import ObservationStacks
from common_utils.success_rule import (
    TERMINATED,
    TRUNCATED,
    EndedBy,
    InfoSays,
    RewardReached,
    SuccessRule,
)
from env import render_slots
from env.config import EnvConfig
from env.core import EnvError, ObsDict
from env.named_modules import import_named, split_task
from env.seeded import SeededEnv

if TYPE_CHECKING:
    import gymnasium

RENDER = "render"
# keys for a single Box
STATE, IMAGE = "state", "image"


def _registered(cfg: EnvConfig) -> Callable[[str | None], gymnasium.Env]:
    """A function from render mode to the environment registered as ``cfg.task``."""
    import gymnasium

    prefix, env_id = split_task(cfg.task)
    for module, field in ((cfg.gym_module, "gym_module"), (prefix, "task")):
        if module:
            import_named(module, field)

    def make(render_mode: str | None) -> gymnasium.Env:
        mode = {} if render_mode is None else {"render_mode": render_mode}
        try:
            # the time limit is episode_length, not the registered one
            return gymnasium.make(env_id, max_episode_steps=-1, disable_env_checker=True, **mode)
        except gymnasium.error.Error as error:
            hint = (
                ""
                if cfg.gym_module or prefix
                else "; gym_module names the module that registers it"
            )
            raise EnvError(f"task: gymnasium cannot make '{cfg.task}': {error}{hint}") from error

    return make


class GymnasiumEnv(SeededEnv):
    """A gymnasium.Env with actions in [-1, 1], stacks, time limit, success.

    Delivers ``{camera}`` uint8 [3 * obs_stack, s, s] (resized if needed), ``prop`` float32
    [P * prop_stack] if ``gym_prop_key`` names it, and with ``use_state`` ``state`` float32
    [S * state_stack]. The reward is the environment's own, summed over ``action_repeat`` steps.
    """

    plays_vectors = True
    _draws_here = True  # with this process's OpenGL

    def __init__(self, cfg: EnvConfig) -> None:
        self._open(cfg, _registered(cfg))

    @classmethod
    def from_env(cls, env: gymnasium.Env | Callable[[], gymnasium.Env], cfg: EnvConfig) -> Any:
        """The adapter of an environment made in Python (or of a function that makes it).

        For your own code; training programs and their workers make environments by registered id.
        """
        self = cls.__new__(cls)
        # a class also has a step
        made = env() if isinstance(env, type) or not hasattr(env, "step") else env
        self._open(cfg, lambda _: made)  # type: ignore[arg-type, return-value]
        return self

    def _open(self, cfg: EnvConfig, make: Callable[[str | None], gymnasium.Env]) -> None:
        self.cfg, self._make = cfg, make
        # images take time, and may need GL: render only if they are requested
        pictures = RENDER in cfg.cameras or bool(cfg.record_images)
        load_triton_before_mesa(rendering=pictures and self._draws_here)
        self._sim: Any = make("rgb_array" if pictures else None)
        self._action_low, self._action_high = self._action_bounds()
        spaces = self._spaces()
        self._state_keys = self._state_names(spaces) if cfg.use_state else []
        self._prop_keys = [k for k in cfg.gym_prop_key.split("+") if k]
        self._check_keys(spaces)
        self.spec = self._make_spec(spaces)
        self._stacks = ObservationStacks(self.spec.observations, cfg.stack_pad)
        self._raw: Mapping[str, np.ndarray] = {}
        self._success_seen = False
        if pictures:
            self._first_picture()  # no GL: report it now

    @classmethod
    def same_task(cls, a: str, b: str) -> bool:
        """Only the id, with its version, counts, not the module that registers it."""
        return split_task(a)[1] == split_task(b)[1]

    @classmethod
    def success_rule(cls, cfg: EnvConfig) -> SuccessRule:
        """The rule of ``gym_success_key``, as in :meth:`step`."""
        key, ends = cfg.gym_success_key, bool(cfg.end_on_success)
        who = f"gym.success_key '{key}'"
        if key in (TERMINATED, TRUNCATED):
            return EndedBy(who, key)
        return InfoSays(who, key, ends) if key else RewardReached(who, ends)

    # ------------------------------------------------------------------- spaces

    def _action_bounds(self) -> tuple[np.ndarray, np.ndarray]:
        from gymnasium.spaces import Box

        space = self._sim.action_space
        if not isinstance(space, Box) or not np.issubdtype(space.dtype, np.floating):
            raise EnvError(f"task '{self.cfg.task}' has actions {space}; expected a float Box")
        low, high = (np.asarray(b, np.float64).ravel() for b in (space.low, space.high))
        if not (np.isfinite(low).all() and np.isfinite(high).all() and (low < high).all()):
            raise EnvError(
                f"task '{self.cfg.task}' has action bounds {low.tolist()} to {high.tolist()}; "
                "expected finite low < high (gymnasium.wrappers.RescaleAction or ClipAction)"
            )
        return low, high

    def _spaces(self) -> dict[str, Any]:
        """Observation spaces by key; a single Box gets the key "image" or "state"."""
        from gymnasium.spaces import Box, Dict

        space = self._sim.observation_space
        if isinstance(space, Box):
            return {IMAGE if _is_picture(space) else STATE: space}
        if not isinstance(space, Dict):
            raise EnvError(
                f"task '{self.cfg.task}' has observations {space}; expected a Box or a Dict of "
                "Boxes (gymnasium.wrappers.FlattenObservation makes one)"
            )
        return dict(space.spaces)

    def _state_names(self, spaces: dict[str, Any]) -> list[str]:
        keys = [k for k in self.cfg.gym_state_key.split("+") if k]
        if keys:
            return keys
        if STATE in spaces:
            return [STATE]
        raise EnvError(
            f"gym_state_key: not given, and task '{self.cfg.task}' has no observation 'state'; "
            f"expected one of {', '.join(spaces)}, or several joined by '+'"
        )

    def _check_keys(self, spaces: dict[str, Any]) -> None:
        from gymnasium.spaces import Box

        fields = [("gym_state_key", self._state_keys), ("gym_prop_key", self._prop_keys)]
        for name, keys in fields:
            for key in keys:
                space = spaces.get(key)
                if not isinstance(space, Box) or _is_picture(space):
                    good = [k for k, s in spaces.items() if isinstance(s, Box)]
                    vectors = [k for k in good if not _is_picture(spaces[k])]
                    raise EnvError(
                        f"{name}: '{key}' is {'not an observation' if space is None else space}; "
                        f"task '{self.cfg.task}' has vectors {', '.join(vectors) or 'none'}"
                    )
        for camera in self.cfg.cameras:
            if camera == RENDER:
                self._check_render()
            elif not _is_picture(spaces.get(camera)):
                pictures = [k for k, s in spaces.items() if _is_picture(s)]
                raise EnvError(
                    f"camera '{camera}' does not exist; task '{self.cfg.task}' has "
                    f"{', '.join([*pictures, RENDER])} (pictures are uint8 [H, W, 3])"
                )
        if not self.cfg.cameras and not self._prop_keys and not self._state_keys:
            raise EnvError(
                f"task '{self.cfg.task}' would deliver nothing: set use_state or cameras"
            )

    def _make_spec(self, spaces: dict[str, Any]) -> EnvSpec:
        cfg, s = self.cfg, self.cfg.rl_image_size
        shape = (3 * cfg.obs_stack, s, s)
        observations = {c: ArraySpec(shape, "uint8", cfg.obs_stack) for c in cfg.cameras}
        vectors = (("prop", self._prop_keys, cfg.prop_stack),)
        for name, keys, stack in (*vectors, ("state", self._state_keys, cfg.state_stack)):
            size = sum(int(np.prod(spaces[k].shape)) for k in keys)
            if size:
                observations[name] = ArraySpec((size * stack,), "float32", stack)
        return EnvSpec(
            suite=cfg.suite or "gymnasium",
            task=cfg.task,
            observations=observations,
            action_dim=len(self._action_low),
            horizon=cfg.episode_length,
            cameras=tuple(cfg.cameras),
        )

    # ----------------------------------------------------------------- images

    def _check_render(self) -> None:
        if self._sim.render_mode != "rgb_array":
            raise EnvError(
                f"pictures of task '{self.cfg.task}' need render_mode 'rgb_array', but it has "
                f"{self._sim.render_mode!r}"
            )

    def _picture(self, camera: str) -> np.ndarray:
        """uint8 [H, W, 3] at the environment's own size."""
        if camera != RENDER:
            return self._raw[camera]
        # each of gymnasium's MuJoCo viewers has a GL context, but only selects it when it is made
        viewer = self._viewer()
        try:
            if viewer is not None:
                viewer.make_context_current()
            picture = self._sim.render()
        except EnvError:  # of an environment in another process
            raise
        except Exception as error:  # whatever its renderer raises
            raise EnvError(
                f"task '{self.cfg.task}' cannot render here: {error!r}; "
                "python -m common_utils.doctor explains"
            ) from error
        if not isinstance(picture, np.ndarray) or picture.ndim != 3 or picture.shape[2] != 3:
            raise EnvError(
                f"task '{self.cfg.task}': render() gave "
                f"{getattr(picture, 'shape', type(picture).__name__)}, expected [H, W, 3]"
            )
        return picture

    def render(self, camera: str | None = None) -> np.ndarray:
        """Image uint8 [image_size, image_size, 3].

        If the environment was made without rendering, it is made again with rendering, once, and
        its episode is played again up to the current step.
        """
        camera = camera or (self.cfg.cameras[0] if self.cfg.cameras else RENDER)
        if camera != RENDER and camera not in self.cfg.cameras:
            known = ", ".join(dict.fromkeys([*self.cfg.cameras, RENDER]))
            raise EnvError(f"camera '{camera}' is not delivered; expected one of {known}")
        if self._seed is None:
            raise EnvError("render: no episode yet; call reset first")
        if camera == RENDER and self._sim.render_mode is None:
            self._start_rendering()
        size = self.cfg.image_size
        return _resized(self._picture(camera), size).transpose(1, 2, 0).copy()

    def _start_rendering(self) -> None:
        episode = self.state_dict()
        sim = self._make("rgb_array")
        if sim is not self._sim:
            self._sim.close()
            self._sim = sim
        self._first_picture()
        self.load_state_dict(episode)

    def _first_picture(self) -> None:
        """Gymnasium's MuJoCo camera keeps looking at the middle of its first image. Make this image
        the same in every environment, whatever it plays first.
        """
        self._check_render()
        load_triton_before_mesa(rendering=True)
        _choose_gl()
        self._sim.reset(seed=0)
        self._picture(RENDER)
        if self._viewer() is not None:
            render_slots.take(render_slots.current_renderer())

    def _viewer(self) -> Any:
        """Of gymnasium's MuJoCo environments, once they have drawn."""
        return getattr(getattr(self._sim.unwrapped, "mujoco_renderer", None), "viewer", None)

    # ------------------------------------------------------------------ episode

    def _observe(self, raw: Any) -> ObsDict:
        if isinstance(raw, Mapping):
            self._raw = raw
        else:
            self._raw = dict.fromkeys((STATE, IMAGE), raw)
        size = self.cfg.rl_image_size
        frames = {c: _resized(self._picture(c), size) for c in self.cfg.cameras}
        for name, keys in (("prop", self._prop_keys), ("state", self._state_keys)):
            if keys:
                frames[name] = self._vector(keys)
        return self._stacks.push(frames)

    def _vector(self, keys: list[str]) -> np.ndarray:
        return np.concatenate([np.ravel(self._raw[k]) for k in keys]).astype(np.float32)

    def _info(self, success: bool) -> dict[str, Any]:
        info: dict[str, Any] = {"success": success}
        if self.cfg.record_images:
            info["images"] = {c: self.render(c) for c in self.cfg.cameras or [RENDER]}
        return info

    def reset(self, *, seed: int) -> tuple[ObsDict, dict[str, Any]]:
        """Start the episode that belongs to ``seed``."""
        seed = self._begin(seed)
        self._stacks.reset()
        self._success_seen = False
        raw, _ = self._sim.reset(seed=seed)
        return self._observe(raw), self._info(False)

    def step(self, action: np.ndarray) -> tuple[ObsDict, float, bool, bool, dict[str, Any]]:
        """One control step: ``action_repeat`` steps of the environment, or until its end."""
        action = self._take(action)
        reward, success, terminated, truncated = 0.0, False, False, False
        for _ in range(self.cfg.action_repeat):
            raw, r, terminated, truncated, info = self._sim.step(self._scaled(action))
            reward += float(r)
            success = success or self._succeeded(float(r), terminated, info)
            if terminated or truncated:
                break
        terminated = bool(terminated) or (success and bool(self.cfg.end_on_success))
        terminated, truncated = self._end(terminated, bool(truncated))
        if truncated and self.cfg.gym_success_key == "truncated":
            success = True
        if not self._running:
            self._check_success_key(info)
        reward *= self.cfg.env_reward_scale
        return self._observe(raw), reward, terminated, truncated, self._info(success)

    def _scaled(self, action: np.ndarray) -> np.ndarray:
        """[-1, 1] to the bounds of the action space, in its shape and dtype."""
        low, high = self._action_low, self._action_high
        space = self._sim.action_space
        scaled = np.clip(low + 0.5 * (action + 1.0) * (high - low), low, high)
        return scaled.reshape(space.shape).astype(space.dtype)

    def _succeeded(self, reward: float, terminated: bool, info: Mapping[str, Any]) -> bool:
        key = self.cfg.gym_success_key
        if key == "":
            return reward >= 1
        if key in ("terminated", "truncated"):
            return key == "terminated" and bool(terminated)
        self._success_seen = self._success_seen or key in info
        return bool(info.get(key, False))

    def _check_success_key(self, info: Mapping[str, Any]) -> None:
        """A key that is missing in a whole episode is a mistake, not a failed episode."""
        key = self.cfg.gym_success_key
        if key not in ("", "terminated", "truncated") and not self._success_seen:
            raise EnvError(
                f"gym_success_key: info of task '{self.cfg.task}' has no '{key}'; it has "
                f"{', '.join(info) or 'nothing'}; or use terminated, truncated, '' (reward >= 1)"
            )

    def close(self) -> None:
        """Free the environment."""
        if self._sim is not None:
            self._sim.close()
            self._sim, self._running = None, False


def _choose_gl() -> None:
    """Without a given back end, gymnasium's MuJoCo renderer tries a window first."""
    if "mujoco" in sys.modules and not os.environ.get("MUJOCO_GL"):
        backend = best_backend()
        if backend != "disabled":
            os.environ["MUJOCO_GL"] = backend


def _is_picture(space: Any) -> bool:
    """Whether a space is a Box of uint8 [H, W, 3]."""
    shape: tuple[int, ...] = getattr(space, "shape", None) or ()
    return len(shape) == 3 and shape[2] == 3 and space.dtype == np.uint8


def _resized(picture: np.ndarray, size: int) -> np.ndarray:
    """uint8 [H, W, 3] -> [3, size, size]."""
    chw = np.ascontiguousarray(picture.transpose(2, 0, 1))
    if chw.shape[1:] == (size, size):
        return chw
    import torch  # workers whose images need no resizing must not pay for it

    from common_utils.ibrl_utils import resize_images

    return resize_images(torch.from_numpy(chw), size).numpy()
