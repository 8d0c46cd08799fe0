"""Replay core, built from csrc/ by ``make`` in this folder. See docs/replay.md."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

Layout = list[tuple[str, str, str, tuple[int, ...], int]]

class EpisodeData:
    """A finished episode, immutable; ``reward`` holds n-step sums."""

    seq_len: int
    terminated: bool
    truncated: bool
    reward: np.ndarray
    bootstrap: np.ndarray
    def to_dict(self) -> dict[str, Any]: ...
    def __len__(self) -> int: ...

def episode_from_arrays(
    obs: Mapping[str, Any],
    action: Mapping[str, Any],
    reward: Any,
    *,
    terminated: bool,
    truncated: bool,
    final_obs: bool = False,
    nstep: int,
    gamma: float,
) -> EpisodeData: ...

class Episode:
    """Builder: init or reset, then push_obs, push_action, push_reward, push_terminal in turn."""

    nstep: int
    max_len: int
    gamma: float
    def __init__(self, nstep: int, max_len: int, gamma: float) -> None: ...
    def init(self, hidden: dict[str, Any] = ...) -> None: ...
    def reset(self) -> None: ...
    def push_obs(self, obs: Mapping[str, Any]) -> None: ...
    def push_action(self, action: Mapping[str, Any]) -> None: ...
    def push_reward(self, reward: float) -> None: ...
    def push_terminal(self, terminal: float, truncated: bool = False) -> None: ...
    def push_final_obs(self, obs: Mapping[str, Any]) -> None: ...
    def pop_transition(self) -> EpisodeData: ...
    def len(self) -> int: ...
    def __len__(self) -> int: ...
    def get_rewards(self) -> list[float]: ...
    def reset_rewards(self, rewards: Sequence[float] | None = None) -> None: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> None: ...

class Batch:
    """numpy arrays (device None) or torch tensors. ``flat`` is the memory they share."""

    obs: dict[str, Any]
    next_obs: dict[str, Any]
    action: dict[str, Any]
    reward: Any
    bootstrap: Any
    seq_len: Any
    flat: np.ndarray
    layout: Layout

class Replay:
    num_transitions: int
    nbytes: int
    obs_fields: list[tuple[str, str, tuple[int, ...]]]
    action_fields: list[tuple[str, str, tuple[int, ...]]]
    def __init__(
        self,
        frame_stack: int,
        n_step: int,
        capacity: int,
        seed: int,
        prefetch: int = 0,
        extra: float = 0.1,
        *,
        stacks: Mapping[str, int] = ...,
        stack_order: str = "oldest_first",
        bootstrap_truncated: bool = False,
        save_only: Sequence[str] = ...,
        storage: str = "ram",
        num_threads: int = 1,
    ) -> None: ...
    def add(self, episode: EpisodeData) -> None: ...
    def sample(self, batchsize: int, device: str | None = "cpu") -> Batch: ...
    def size(self) -> int: ...
    def num_add(self) -> int: ...
    def get(self, idx: int) -> dict[str, Any]: ...
    def get_range(self, start: int, end: int, device: str | None = "cpu") -> Batch: ...
    def read(self, group: str, key: str = "", begin: int = 0, end: int = -1) -> np.ndarray: ...
    def meta(self) -> dict[str, Any]: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> None: ...
    def clear(self) -> None: ...
    def donate(self, buffer: np.ndarray) -> None: ...
    def terminate(self) -> None: ...

class SingleStepTransitionReplay(Replay):
    """Draws transitions, uniformly over all stored ones."""

class MultiStepTransitionReplay(Replay):
    """Draws whole episodes, time-major [T, N, ...] and zero padded; ``seq_len`` int32 [N]."""

class JointSampler:
    """Draws one batch from several replays; rows of the first replay come first."""

    def __init__(
        self,
        replays: Sequence[SingleStepTransitionReplay],
        *,
        prefetch: int = 0,
        num_threads: int = 1,
    ) -> None: ...
    def sample(self, batchsizes: Sequence[int], device: str | None = "cpu") -> Batch: ...
    def donate(self, buffer: np.ndarray) -> None: ...
    def terminate(self) -> None: ...
