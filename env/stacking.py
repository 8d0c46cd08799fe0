"""Stacks of the last steps: newest first, for images, proprioception and states alike.

Before the episode's start come zeros, the framework's convention (``concat_obs`` of the
original), or copies of the first frame (the history of Implicit Behavioral Cloning).
"""

from __future__ import annotations

from collections import deque
from typing import Literal

import numpy as np

StackPad = Literal["zeros", "repeat"]


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
        self._frames.appendleft(frame)
        missing = self.stack - len(self._frames)
        before = self._frames[-1] if self.pad == "repeat" else np.zeros_like(frame)
        return np.concatenate([*self._frames, *[before] * missing])
