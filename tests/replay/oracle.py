"""A slow, obvious replay: lists of episodes and loops, to compare the core with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass
class OracleEpisode:
    number: int  # of the add, also written into every action
    obs: dict[str, np.ndarray]  # [T or T+1, ...]
    reward: np.ndarray  # float32 [T]
    terminated: bool
    truncated: bool

    def __len__(self) -> int:
        return len(self.reward)


@dataclass
class OracleReplay:
    nstep: int
    gamma: float
    capacity: int
    stacks: dict[str, int]
    newest_first: bool
    bootstrap_truncated: bool

    def __post_init__(self) -> None:
        self.episodes: list[OracleEpisode] = []
        self.num_add = 0

    def add(self, episode: OracleEpisode) -> None:
        self.episodes = [*self.episodes, episode][-self.capacity :]
        self.num_add += 1

    def num_transitions(self) -> int:
        return sum(len(e) for e in self.episodes)

    def find(self, number: int) -> OracleEpisode:
        return next(e for e in self.episodes if e.number == number)

    def _stack(self, e: OracleEpisode, key: str, t: int, last: int) -> np.ndarray:
        """The stack at time t of frames 0..last."""
        frames, k = e.obs[key], self.stacks[key]
        if k == 1:
            return frames[min(t, last)]
        if self.newest_first:
            t = min(t, last)
            zero = np.zeros_like(frames[0])
            return np.concatenate([frames[t - j] if t >= j else zero for j in range(k)])
        times = [min(max(t - j, 0), last) for j in reversed(range(k))]
        return np.concatenate([frames[i] for i in times])

    def window(self, e: OracleEpisode, t: int, horizon: int) -> dict[str, Any]:
        """Actions, rewards and validity of the steps from ``t`` on."""
        times = range(t, t + horizon)
        return {
            "id": [[e.number, min(i, len(e) - 1)] for i in times],
            "rewards": [e.reward[i] if i < len(e) else 0 for i in times],
            "valid": [float(i < len(e)) for i in times],
        }

    def transition(self, e: OracleEpisode, t: int, horizon: int = 1) -> dict[str, Any]:
        length, n = len(e), self.nstep if horizon == 1 else horizon
        gamma = np.float32(self.gamma)
        reward, weight = np.float32(0), np.float32(1)
        for j in range(n):
            if t + j < length:
                reward = np.float32(reward + weight * e.reward[t + j])
                weight = np.float32(weight * gamma)
        continues = self.bootstrap_truncated and not e.terminated
        last = length if continues else length - 1
        if t + n < length:
            bootstrap = np.float32(float(gamma) ** n)
        else:
            bootstrap = np.float32(float(gamma) ** (length - t)) if continues else np.float32(0)
        return {
            "obs": {k: self._stack(e, k, t, last) for k in e.obs},
            "next_obs": {k: self._stack(e, k, t + n, last) for k in e.obs},
            "reward": reward,
            "bootstrap": bootstrap,
        }

    def check_rows(self, batch: Any, horizon: int = 1) -> None:
        """Every row of a numpy batch is exactly the stored transition, or window, that its (first)
        action names."""
        first = batch.action["id"] if horizon == 1 else batch.action["id"][:, 0]
        for i, (number, t) in enumerate(first.tolist()):
            want = self.transition(self.find(number), t, horizon)
            if horizon > 1:
                steps = self.window(self.find(number), t, horizon)
                np.testing.assert_array_equal(batch.action["id"][i], steps["id"])
                np.testing.assert_array_equal(batch.rewards[i], np.float32(steps["rewards"]))
                np.testing.assert_array_equal(batch.valid[i], steps["valid"])
            for group in ("obs", "next_obs"):
                got = getattr(batch, group)
                assert set(got) == set(want[group])
                for key, value in want[group].items():
                    assert got[key].dtype == value.dtype
                    np.testing.assert_array_equal(got[key][i], value)
            assert batch.reward[i] == want["reward"]
            assert batch.bootstrap[i] == want["bootstrap"]
