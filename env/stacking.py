"""Stacks of the last steps: newest first, zeros before the episode's start.

The one convention of the framework (``concat_obs`` of the original), for images,
proprioception and states alike.
"""

from __future__ import annotations

from collections import deque

import numpy as np


class Stacker:
    """Holds the last ``stack`` frames of one observation key."""

    def __init__(self, stack: int) -> None:
        if stack < 1:
            raise ValueError(f"stack is {stack}, expected at least 1")
        self.stack = stack
        self._frames: deque[np.ndarray] = deque(maxlen=stack)

    def reset(self) -> None:
        """A new episode: nothing came before."""
        self._frames.clear()

    def push(self, frame: np.ndarray) -> np.ndarray:
        """frame [C, ...] -> [C * stack, ...], newest first."""
        self._frames.appendleft(frame)
        missing = self.stack - len(self._frames)
        return np.concatenate([*self._frames, *[np.zeros_like(frame)] * missing])
