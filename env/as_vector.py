"""Environments of any suite as a ``gymnasium.vector.VectorEnv``, for training code of your own.

    envs = SuiteVectorEnv.open(EnvConfig(suite="robosuite", task="Lift", use_state=1), num=4)

docs/scaling.md has a complete example.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

import numpy as np
from gymnasium.spaces import Box, Dict, Space
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from common_utils.specs import ArraySpec
from env.config import EnvConfig
from env.core import EnvError, ObsDict
from env.lanes import Lanes, Reply, open_lanes


class SuiteVectorEnv(VectorEnv[ObsDict, np.ndarray, np.ndarray]):
    """Lanes behind gymnasium's interface of vector environments.

    Observations are dicts of arrays [N, ...] as ``lanes.spec`` has them, actions float32 [N, A] in
    [-1, 1], infos those of ``Env.step`` (``success``, ...) with gymnasium's masks.

    Nothing resets by itself (autoreset mode ``DISABLED``): reset the lanes that have ended by
    ``options={"reset_mask": bool [N]}``, before the next step. An episode follows from its seed:
    ``seed`` k starts lane i with k + i, a list has one for each lane (None: drawn). Without a seed
    they are drawn from ``np_random``, so the first seed decides all that follow.

    Args:
        lanes: closed with this.
    """

    metadata: ClassVar[dict[str, Any]] = {  # type: ignore[misc]
        "autoreset_mode": AutoresetMode.DISABLED,
        "render_modes": [],
    }

    def __init__(self, lanes: Lanes) -> None:
        self.lanes, self.num_envs = lanes, lanes.num
        spaces: dict[str, Space[Any]] = {k: _space(s) for k, s in lanes.spec.observations.items()}
        self.single_observation_space = Dict(spaces)
        self.single_action_space = Box(-1.0, 1.0, (lanes.spec.action_dim,), np.float32)
        self.observation_space = batch_space(self.single_observation_space, lanes.num)
        self.action_space = batch_space(self.single_action_space, lanes.num)
        self._last: list[ObsDict] = [{} for _ in range(lanes.num)]
        self._over = set(range(lanes.num))  # lanes without an episode

    @classmethod
    def open(cls, cfg: EnvConfig, num: int, timeout: float = 120.0) -> SuiteVectorEnv:
        """``num`` environments of ``cfg``, as ``env.lanes.open_lanes`` opens them: several are in
        processes of their own, whose answers may take ``timeout`` seconds."""
        return cls(open_lanes(cfg, num, timeout))

    def reset(  # type: ignore[override]
        self,
        *,
        seed: int | Sequence[int | None] | None = None,
        options: dict[str, Any] | None = None,
    ) -> tuple[ObsDict, dict[str, Any]]:
        """Start episodes, in all lanes or those of ``options["reset_mask"]``.

        Returns the observations of all lanes, and the infos of those that were reset.
        """
        lanes = self._chosen(options or {})
        seeds = self._seeds(seed)
        for lane in lanes:
            self.lanes.reset(lane, seeds[lane])
        infos: dict[str, Any] = {}
        for lane in lanes:
            reply = self.lanes.receive(lane)
            self._last[lane] = reply.obs
            infos = self._add_info(infos, reply.info, lane)
        self._over -= set(lanes)
        return self._observed(), infos

    def step(
        self, actions: np.ndarray
    ) -> tuple[ObsDict, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """A step of all lanes, which play at the same time; EnvError if an episode has ended."""
        if self._over:
            raise EnvError(
                f"step: environments {sorted(self._over)} have no episode, expected a reset with "
                "options={'reset_mask': terminated | truncated} before"
            )
        given = np.asarray(actions, np.float32)
        if given.shape != self.action_space.shape:
            raise EnvError(f"actions: shape {given.shape}, expected {self.action_space.shape}")
        for lane, action in enumerate(given):
            self.lanes.send(lane, action)
        replies = [self.lanes.receive(lane) for lane in range(self.num_envs)]
        return self._outcome(replies)

    def _outcome(
        self, replies: Sequence[Reply]
    ) -> tuple[ObsDict, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        infos: dict[str, Any] = {}
        for lane, reply in enumerate(replies):
            self._last[lane] = reply.obs
            infos = self._add_info(infos, reply.info, lane)
        rewards = np.array([r.reward for r in replies], np.float64)
        terminated = np.array([r.terminated for r in replies], bool)
        truncated = np.array([r.truncated for r in replies], bool)
        self._over = set(np.flatnonzero(terminated | truncated).tolist())
        return self._observed(), rewards, terminated, truncated, infos

    def close_extras(self, **kwargs: Any) -> None:
        """End the processes."""
        self.lanes.close()

    # ------------------------------------------------------------------ parts of a reset

    def _chosen(self, options: dict[str, Any]) -> list[int]:
        if unknown := sorted(options.keys() - {"reset_mask"}):
            raise EnvError(f"options: {', '.join(unknown)}, expected reset_mask or nothing")
        if "reset_mask" not in options:
            return list(range(self.num_envs))
        mask = np.asarray(options["reset_mask"])
        if mask.shape != (self.num_envs,) or mask.dtype != bool:
            raise EnvError(
                f"reset_mask: {mask.dtype} {list(mask.shape)}, expected bool [{self.num_envs}]"
            )
        chosen: list[int] = np.flatnonzero(mask).tolist()
        if never := [i for i, obs in enumerate(self._last) if not obs and i not in chosen]:
            raise EnvError(f"reset_mask: environments {never} have never begun, expected all")
        return chosen

    def _seeds(self, seed: int | Sequence[int | None] | None) -> list[int]:
        """One for each lane; those that are not given are drawn."""
        if isinstance(seed, (int, np.integer)):
            super().reset(seed=int(seed))
            return [int(seed) + lane for lane in range(self.num_envs)]
        given: Iterable[int | None] = [None] * self.num_envs if seed is None else seed
        drawn = self.np_random.integers(2**31, size=self.num_envs).tolist()
        return [int(own if here is None else here) for here, own in zip(given, drawn, strict=True)]

    def _observed(self) -> ObsDict:
        return {k: np.stack([obs[k] for obs in self._last]) for k in self._last[0]}


def _space(spec: ArraySpec) -> Box:
    """All values of the array's type: suites declare no tighter bounds."""
    if np.issubdtype(spec.dtype, np.integer):
        limits = np.iinfo(spec.dtype)
        return Box(limits.min, limits.max, spec.shape, np.dtype(spec.dtype).type)
    return Box(-np.inf, np.inf, spec.shape, np.dtype(spec.dtype).type)
