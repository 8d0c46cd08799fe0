"""Chunks: several steps' actions decided at once, of which the first ones are played.

A policy predicts ``length`` actions for an observation (T_p), and ``execute`` of them (T_a) are
played before it looks again (receding horizon: Chi et al. 2023, Diffusion Policy).

Chunks are looked up by time: an observation that carries ``CLOCK`` (the episode and its step) gets
the action that its episode's chunk has for that step. The first step of an episode, and a step that
no chunk covers, ask the policy. So training, warm-up and evaluations, with any number of episodes
at once, never take each other's chunks, and nothing outlives its episode.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple

import torch

from common_utils.ranges import Between
from common_utils.specs import CLOCK, Obs

MOST_EPISODES = 1024  # whose chunks are kept


@dataclass
class ChunkConfig:
    """How many actions are predicted at a time, and how many of them are played."""

    # actions predicted for an observation: this step's and the following ones'
    length: Annotated[int, Between(1, 256)] = 1
    # of these, how many are played before the next observation is looked at
    execute: Annotated[int, Between(1, 256)] = 1

    def __post_init__(self) -> None:
        if self.execute > self.length:
            raise ValueError(f"execute: {self.execute}, expected at most length {self.length}")


class Chunk(NamedTuple):
    """Actions [n, T, A] for the steps from ``start`` on."""

    start: int
    actions: torch.Tensor


class ChunkPlayer:
    """Remembers the chunks of the episodes that are being played.

    Args:
        execute: actions of a chunk that are played; with 1 nothing is remembered.
    """

    def __init__(self, execute: int) -> None:
        self.execute = execute
        self._chunks: OrderedDict[tuple[int, int], Chunk] = OrderedDict()

    @property
    def needs_clock(self) -> bool:
        """Whether observations must carry ``CLOCK``."""
        return self.execute > 1

    def play(self, inputs: Obs, kind: int, decide: Callable[[Obs], torch.Tensor]) -> torch.Tensor:
        """The actions [B, n, A] of this step, for inputs [B, ...].

        Args:
            inputs: what the policy reads, and ``CLOCK`` int64 [B, 2]; without it new chunks are
                decided on and their first actions taken.
            kind: an episode has one chunk of each kind.
            decide: inputs without CLOCK -> chunks [b, n, T, A], T at least ``execute``.
        """
        rows = {key: value for key, value in inputs.items() if key != CLOCK}
        if CLOCK not in inputs or not self.needs_clock:
            return decide(rows)[:, :, 0]
        times = [(int(episode), int(step)) for episode, step in inputs[CLOCK].tolist()]
        new = [i for i, at in enumerate(times) if not self._covers(*at, kind)]
        if new:
            chunks = decide({key: value[new] for key, value in rows.items()})
            for i, actions in zip(new, chunks, strict=True):
                self._keep(times[i][0], kind, Chunk(times[i][1], actions[:, : self.execute]))
        playing = [(self._chunks[episode, kind], step) for episode, step in times]
        device = next(iter(rows.values())).device
        now = [chunk.actions[:, step - chunk.start] for chunk, step in playing]
        return torch.stack(now).to(device)

    def _covers(self, episode: int, step: int, kind: int) -> bool:
        chunk = self._chunks.get((episode, kind))
        return chunk is not None and step > 0 and 0 < step - chunk.start < self.execute

    def _keep(self, episode: int, kind: int, chunk: Chunk) -> None:
        self._chunks.pop((episode, kind), None)
        self._chunks[episode, kind] = chunk
        while len(self._chunks) > MOST_EPISODES:
            self._chunks.popitem(last=False)

    def begun(self, inputs: Obs, kind: int) -> torch.Tensor | None:
        """First chunks [B, T, A] that begin at these steps, by ``CLOCK``; None if not all do."""
        found = []
        for episode, step in inputs[CLOCK].tolist() if CLOCK in inputs else [(-1, -1)]:
            chunk = self._chunks.get((episode, kind))
            if chunk is None or chunk.start != step:
                return None
            found.append(chunk.actions[0])
        return torch.stack(found)

    def state_dict(self) -> dict[str, Any]:
        """The chunks that are being played, as plain data and tensors."""
        return {"chunks": [[*key, c.start, c.actions] for key, c in self._chunks.items()]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Inverse of :meth:`state_dict`."""
        self._chunks.clear()
        for episode, kind, start, actions in state.get("chunks", []):
            self._keep(episode, kind, Chunk(start, actions))
