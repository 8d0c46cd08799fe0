"""Meta-World's scripted policies."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np

from env.core import EnvError, Expert
from env.metaworld.env import MetaWorldEnv


def _scripted_policy(task: str) -> Any:
    """The scripted policy of ``task`` (assembly-v3): ``get_action(state [39]) -> [4]``."""
    from metaworld.policies import ENV_POLICY_MAP

    # they are: its policies count on the environment to clip their actions, as `plain` does
    warnings.filterwarnings("ignore", r"Constant\(s\) may be too high", module="metaworld")
    policies: dict[str, Any] = ENV_POLICY_MAP
    try:
        return policies[task]()
    except KeyError:
        raise EnvError(f"no scripted policy for Meta-World task '{task}'") from None


class MetaWorldExpert(Expert):
    """Meta-World's own policy of a task.

    Args:
        env: the environment it acts in.
        noise: standard deviation of Gaussian noise on its actions.
        random_rate: share of actions that are replaced by uniform ones.
    """

    def __init__(self, env: MetaWorldEnv, noise: float = 0.0, *, random_rate: float = 0.0) -> None:
        self.env, self.noise, self.random_rate = env, noise, random_rate
        self._policy = _scripted_policy(env.task)
        self._rng = np.random.default_rng(0)

    def reset(self, rng: np.random.Generator) -> None:
        """Called before each episode."""
        self._rng = rng

    def plain(self, clip: bool = True) -> np.ndarray:
        """The policy's action float64 [4], without noise, within [-1, 1] if ``clip``."""
        action = np.asarray(self._policy.get_action(self.env.raw_state), np.float64)
        return action.clip(-1, 1) if clip else action

    def act(self) -> np.ndarray:
        """Action float32 [4] in [-1, 1] for the environment's current state."""
        action = self.plain()
        if self.noise > 0:
            action = action + self._rng.normal(0.0, self.noise, action.shape)
        if self.random_rate > 0 and self._rng.random() < self.random_rate:
            action = self._rng.uniform(-1, 1, action.shape)
        return action.clip(-1, 1).astype(np.float32)
