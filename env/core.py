"""The one environment interface. Every suite implements it; trainers know nothing else.

    obs, info = env.reset(seed=k)                       # same k, same episode, always
    obs, reward, terminated, truncated, info = env.step(action)

``obs``   dict of numpy arrays exactly as ``env.spec.observations`` says (see common_utils.specs)
``action`` float32 [A] in [-1, 1]
``reward`` float (scaled by the configured reward scale)
``info``  {"success": bool, "images": {camera: uint8 [H, W, 3]}} ("images" only when asked for);
          at an episode's last step a task may add "metrics": {name: float}, which evaluations
          average. "recorded" (with record_sim_state): what files of demonstrations hold besides
          the observation: arrays that belong to it, strings that belong to the episode

An environment holds no generator of its own: what is random in an episode follows from the
seed given to ``reset``, so an episode is (seed, actions), which is also how it is resumed.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, Protocol

import numpy as np

from common_utils.env_args import plain_task
from common_utils.errors import UserError
from common_utils.specs import EnvSpec
from common_utils.success_rule import AsRecorded, SuccessRule
from env.config import EnvConfig

ObsDict = dict[str, np.ndarray]


class EnvError(UserError):
    """An environment was misused, or cannot be built here; the message says what to do."""


class Env(ABC):
    """Base class: stacking, validation and replayable episodes live in subclasses' helpers."""

    spec: EnvSpec
    # control steps per second, for videos
    control_hz: float = 20.0
    # numbers of proprioception that the suite delivers, where all its tasks deliver as many
    prop_dim: int = 0
    # seconds spent drawing pictures so far (where the suite draws them in this process)
    render_seconds: float = 0.0

    @abstractmethod
    def reset(self, *, seed: int) -> tuple[ObsDict, dict[str, Any]]:
        """Start the episode that belongs to ``seed`` (a non-negative int)."""

    @abstractmethod
    def step(self, action: np.ndarray) -> tuple[ObsDict, float, bool, bool, dict[str, Any]]:
        """One control step: (obs, reward, terminated, truncated, info)."""

    @abstractmethod
    def render(self, camera: str | None = None) -> np.ndarray:
        """Upright RGB image uint8 [H, W, 3] of the current state, for videos."""

    @abstractmethod
    def close(self) -> None:
        """Free simulator and GL resources; safe to call twice."""

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Current episode as plain data: {"seed": int, "actions": [[float]*A]*t}."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, Any]) -> ObsDict | None:
        """Bring the environment to that state (replays the actions); returns its observation.

        Returns None when the state was taken before the first reset.
        """

    # ------------------------------------------- what a suite's files of demonstrations say

    @classmethod
    def env_args(cls, cfg: EnvConfig) -> dict[str, Any]:
        """What files of demonstrations say of the environment of ``cfg``."""
        return {"suite": cfg.suite, "env_name": cfg.task, "env_kwargs": asdict(cfg)}

    @classmethod
    def recording(cls, cfg: EnvConfig) -> EnvConfig:
        """``cfg`` with all that files of demonstrations hold of a step."""
        return cfg

    @classmethod
    def adopt(cls, cfg: EnvConfig, args: Mapping[str, Any], action_repeat: int) -> list[str]:
        """Put what a file says of its environment into ``cfg``; returns what contradicts it.

        Args:
            args: the file's ``env_args``, {} where it has none.
            action_repeat: simulator steps per action that the reader was set to.
        """
        # what a policy sees at evaluation must look like what it learned from
        quality = (args.get("env_kwargs") or {}).get("render_quality")
        if quality in ("faithful", "fast"):
            cfg.render_quality = quality
        return []

    @classmethod
    def same_task(cls, a: str, b: str) -> bool:
        """Whether two spellings name one task of the suite."""
        return plain_task(a) == plain_task(b)

    @classmethod
    def success_rule(cls, cfg: EnvConfig) -> SuccessRule:
        """Where recorded episodes of ``cfg`` end, and which of them are successes."""
        return AsRecorded(cfg.suite)


class Expert(Protocol):
    """A scripted expert: it looks into the environment it was made for, not at observations.

    ``env.experts.make_expert`` makes one; what a suite's expert is given besides the noise is
    in the docstring of its class.
    """

    @property
    def phase(self) -> str:
        """What it is doing, for reports; "" where it has no phases."""
        return ""

    @property
    def achieved(self) -> tuple[str, ...]:
        """What has been done of the task in this episode, in order; () where it does not say."""
        return ()

    def reset(self, rng: np.random.Generator) -> None:
        """Before each episode, after the environment's reset; ``rng`` is for its choices."""

    def act(self) -> np.ndarray:
        """Action float32 [A] in [-1, 1] for the environment's present state."""
