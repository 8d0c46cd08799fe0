"""Episodes as (seed, actions): the base class of all simulated suites."""

from __future__ import annotations

from typing import Any

import numpy as np

from env.core import Env, EnvError, ObsDict


class SeededEnv(Env):
    """Records the current episode, and plays it again to get back to a state.

    Subclasses call ``_begin`` in ``reset``; ``step`` calls ``_take`` first and ``_end`` last.
    """

    _seed: int | None = None
    _actions: list[list[float]]
    _running = False
    # largest magnitude of an action's entries (infinite where they are not fractions of a range)
    _action_limit = 1.0
    # while an episode is played again: leave out what only costs time (images of steps
    # that are in no stack of the last observation)
    _blind = False

    def _begin(self, seed: int) -> int:
        """A new episode starts; returns its seed, checked."""
        if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or seed < 0:
            raise EnvError(f"seed is {seed!r}, expected an integer, 0 or more")
        self._seed, self._actions, self._running = int(seed), [], True
        return self._seed

    def _take(self, action: np.ndarray) -> np.ndarray:
        """Check and record the action of this step: float64 [A] within [-1, 1]."""
        if not self._running:
            raise EnvError("step: no episode is running; call reset first")
        dim = self.spec.action_dim
        array = np.asarray(action, np.float64)
        if array.shape != (dim,) or not np.isfinite(array).all():
            raise EnvError(f"action must be {dim} finite numbers, got {action!r}")
        if np.abs(array).max() > self._action_limit + 1e-6:
            raise EnvError(f"action must lie in [-1, 1], got {array.tolist()}")
        self._actions.append(array.tolist())
        return array

    def _end(self, terminated: bool, truncated: bool = False) -> tuple[bool, bool]:
        """(terminated, truncated) of this step, the time limit included."""
        truncated = not terminated and (truncated or len(self._actions) >= self.spec.horizon)
        self._running = not (terminated or truncated)
        return terminated, truncated

    def state_dict(self) -> dict[str, Any]:
        """The episode so far: its seed and the actions since."""
        actions = [] if self._seed is None else [list(a) for a in self._actions]
        return {"seed": self._seed, "actions": actions}

    def load_state_dict(self, state: dict[str, Any]) -> ObsDict | None:
        """Play the episode again up to that point."""
        if not {"seed", "actions"} <= state.keys():
            raise EnvError(f"state has keys {sorted(state)}, expected seed and actions")
        if state["seed"] is None:
            self._seed, self._running = None, False
            return None
        actions = state["actions"]
        stack = max(s.stack for s in self.spec.observations.values())
        self._blind = len(actions) >= stack
        try:
            obs, _ = self.reset(seed=state["seed"])
            for i, action in enumerate(actions, start=1):
                self._blind = i <= len(actions) - stack
                obs = self.step(np.array(action, np.float64))[0]
        finally:
            self._blind = False
        return obs
