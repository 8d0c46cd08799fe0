"""Stacks of the last steps: newest first, for images, proprioception and states alike.

A stack holds the frames of steps t, t - 1, ..., t - stack + 1, along the first axis of a frame.
Steps before the episode's start are zeros (the framework's convention) or copies of the first
frame (the history of Implicit Behavioral Cloning). Environments stack step by step
(:class:`ObservationStacks`), readers of whole episodes by index (:func:`gather_stack`).
``ibrl_utils.concat_obs`` is the tensor form. The C++ replay applies the same rule while it copies
a batch (``csrc/replay/replay.cc: gather_obs``); a test compares the two.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Literal, TypeVar

import numpy as np

from common_utils.specs import ArraySpec

Frame = TypeVar("Frame")
StackPad = Literal["zeros", "repeat"]


def newest_first(frames: Sequence[Frame], t: int, stack: int, before: Frame) -> list[Frame]:
    """The ``stack`` frames up to step ``t``; ``before`` stands for those before step 0."""
    return [frames[t - j] if j <= t else before for j in range(stack)]


def stack_rows(rows: np.ndarray, starts: np.ndarray, stack: int) -> tuple[np.ndarray, np.ndarray]:
    """:func:`newest_first` for many steps: int64 rows [B, stack], and which are before the start.

    ``starts[b]`` is the first row of the episode of ``rows[b]``; it replaces rows before it.
    """
    index = rows[:, None] - np.arange(stack)
    before = index < starts[:, None]
    return np.where(before, starts[:, None], index), before


def take_stacks(
    frames: np.ndarray, rows: np.ndarray, before: np.ndarray, pad: StackPad
) -> np.ndarray:
    """Frames [T, C, ...] at ``rows`` [B, stack] -> [B, stack * C, ...].

    Those marked in ``before`` [B, stack] become zeros unless ``pad`` is "repeat".
    """
    out = frames[rows]
    if pad == "zeros":
        out[before] = 0
    return out.reshape(len(rows), rows.shape[1] * frames.shape[1], *frames.shape[2:])


def gather_stack(
    frames: np.ndarray,
    rows: np.ndarray,
    starts: np.ndarray,
    stack: int,
    pad: StackPad = "zeros",
) -> np.ndarray:
    """Stacked observations of ``rows``: [B, stack * frames.shape[1], ...], newest first.

    ``starts[b]`` is the first row of the episode of ``rows[b]``; rows before it are zeros, or
    copies of the first row.
    """
    if stack == 1:
        return frames[rows]
    return take_stacks(frames, *stack_rows(rows, starts, stack), pad)


def stack_episode(frames: np.ndarray, stack: int) -> np.ndarray:
    """Frames [T, C, ...] of one episode -> its stacked observations [T, stack * C, ...].

    With a stack of 1 they are ``frames`` itself.
    """
    if stack == 1:
        return frames
    rows = np.arange(len(frames))
    return gather_stack(frames, rows, np.zeros_like(rows), stack)


class Stacker:
    """Holds the last ``stack`` frames of one observation key."""

    def __init__(self, stack: int, pad: StackPad = "zeros") -> None:
        if stack < 1:
            raise ValueError(f"stack is {stack}, expected at least 1")
        self.stack = stack
        self.pad = pad
        self._frames: deque[np.ndarray] = deque(maxlen=stack)

    def reset(self) -> None:
        """A new episode: nothing came before."""
        self._frames.clear()

    def push(self, frame: np.ndarray) -> np.ndarray:
        """frame [C, ...] -> [C * stack, ...], newest first."""
        frames = self._frames
        frames.append(frame)
        # while some are missing, the oldest is the episode's first
        before = frames[0] if self.pad == "repeat" else np.zeros_like(frame)
        return np.concatenate(newest_first(frames, len(frames) - 1, self.stack, before))


class ObservationStacks:
    """An environment's observations, each stacked as its spec says."""

    def __init__(self, specs: Mapping[str, ArraySpec], pad: StackPad) -> None:
        self._stackers = {key: Stacker(spec.stack, pad) for key, spec in specs.items()}

    def reset(self) -> None:
        """A new episode: nothing came before."""
        for stacker in self._stackers.values():
            stacker.reset()

    def push(self, frames: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """This step's frames by key -> the stacks that end with them."""
        return {key: self._stackers[key].push(frame) for key, frame in frames.items()}
