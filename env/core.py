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
from typing import Any

import numpy as np

from common_utils.specs import EnvSpec

ObsDict = dict[str, np.ndarray]


class EnvError(RuntimeError):
    """An environment was misused, or cannot be built here; the message says what to do."""


class Env(ABC):
    """Base class: stacking, validation and replayable episodes live in subclasses' helpers."""

    spec: EnvSpec
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
        """Upright RGB picture uint8 [H, W, 3] of the present state, for videos."""

    @abstractmethod
    def close(self) -> None:
        """Free simulator and GL resources; safe to call twice."""

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Present episode as plain data: {"seed": int, "actions": [[float]*A]*t}."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, Any]) -> ObsDict | None:
        """Bring the environment to that state (replays the actions); returns its observation.

        Returns None when the state was taken before the first reset.
        """
