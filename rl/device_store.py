"""A replay's contents on a GPU: batches are gathered there, and only their row numbers are copied.

The C++ replay stays the one that holds, saves and draws: it draws the same rows, and computes the
returns, as if it made the batch itself. So batches are the same bits wherever they are gathered.
"""

from __future__ import annotations

import math

import numpy as np
import torch

from common_utils import rela
from common_utils.stacking import stack_rows

ROOM = 1.25  # a copy is made so much larger than what it must hold, to be made anew rarely
_PIECE_BYTES = 32 << 20
Parts = dict[str, dict[str, torch.Tensor]]


class _Columns:
    """The rows of a replay's observations, or of its actions: row i is at i modulo the size."""

    def __init__(
        self, core: rela.SingleStepTransitionReplay, group: str, device: torch.device
    ) -> None:
        self._core, self._group, self._device = core, group, device
        self.rows: dict[str, torch.Tensor] = {}
        self.size = 0
        self._end = 0  # rows before it are here

    def forget(self) -> None:
        self._end = 0

    def follow(self, begin: int, end: int) -> None:
        """Hold the rows [begin, end)."""
        if end - begin > self.size:
            self._make_room(end - begin)
        fresh = max(self._end, begin)
        for key in self.rows if fresh < end else ():
            self._copy(key, begin, fresh, end)
        self._end = end

    def _make_room(self, needed: int) -> None:
        fields = self._core.obs_fields if self._group == "obs" else self._core.action_fields
        self.rows.clear()  # before the new ones are made
        self.size, self._end = math.ceil(needed * ROOM), 0
        for key, dtype, shape in fields:
            kind = getattr(torch, dtype)
            self.rows[key] = torch.empty(self.size, *shape, dtype=kind, device=self._device)

    def _copy(self, key: str, begin: int, first: int, end: int) -> None:
        to = self.rows[key]
        step = max(1, _PIECE_BYTES // max(1, to[0].nbytes))
        for a in range(first, end, step):
            b = min(a + step, end)
            piece = torch.from_numpy(self._core.read(self._group, key, a - begin, b - begin))
            at = a % self.size
            whole = min(b - a, self.size - at)  # up to the seam
            to[at : at + whole].copy_(piece[:whole])
            to[: b - a - whole].copy_(piece[whole:])


class DeviceStore:
    """Batches of one replay's transitions, gathered on ``device``.

    stacks: steps per observation, by key. nstep: steps to the next observation.
    """

    def __init__(
        self,
        core: rela.SingleStepTransitionReplay,
        stacks: dict[str, int],
        nstep: int,
        device: torch.device,
    ) -> None:
        self._core, self._stacks, self._nstep, self._device = core, stacks, nstep, device
        self._obs = _Columns(core, "obs", device)
        self._actions = _Columns(core, "action", device)
        self._version = -1

    def forget(self) -> None:
        """The replay's contents were replaced: copy all of them again."""
        self._version = -1
        self._obs.forget()
        self._actions.forget()

    def sample(self, batch_size: int, horizon: int = 1) -> Parts:
        """The replay's next batch: {group: {key: tensor}} as in ``rl.replay.split_flat``."""
        drawn = self._core.draw(batch_size, horizon)
        if self._version != (version := self._core.mark()[0]):
            for columns, span in zip((self._obs, self._actions), self._core.spans(), strict=True):
                columns.follow(*span)
            self._version = version
        numbers = self._row_numbers(drawn, horizon)
        on_device = self._moved(np.concatenate([n.ravel() for n in numbers]))
        parts = dict(zip(self._plan(), on_device.split([n.size for n in numbers]), strict=True))
        reward, bootstrap = self._moved(np.stack([drawn["reward"], drawn["bootstrap"]]))
        rows = parts["action", 1]
        found = {
            "obs": self._stacked("obs", parts),
            "next_obs": self._stacked("next_obs", parts),
            "action": {k: v.index_select(0, rows) for k, v in self._actions.rows.items()},
            "reward": {"reward": reward},
            "bootstrap": {"bootstrap": bootstrap},
        }
        return found if horizon == 1 else found | self._of_windows(drawn, horizon, found["action"])

    def _of_windows(
        self, drawn: dict[str, np.ndarray], horizon: int, actions: dict[str, torch.Tensor]
    ) -> Parts:
        """Actions [B, h, ...], rewards and validity [B, h]; ``actions`` are [B * h, ...]."""
        inside = drawn["t"][:, None] + np.arange(horizon) < drawn["len"][:, None]
        rewards, valid = self._moved(np.stack([drawn["rewards"], inside.astype(np.float32)]))
        windows = {k: v.unflatten(0, (-1, horizon)) for k, v in actions.items()}
        return {"action": windows, "rewards": {"rewards": rewards}, "valid": {"valid": valid}}

    def _plan(self) -> list[tuple[str, int]]:
        """The row numbers that a batch needs: (group, stack)."""
        stacks = sorted(set(self._stacks.values()))
        return [*((g, s) for g in ("obs", "next_obs") for s in stacks), ("action", 1)]

    def _row_numbers(self, drawn: dict[str, np.ndarray], horizon: int) -> list[np.ndarray]:
        """int64 [B, stack or horizon] for each of the plan; -1: zeros before the episode."""
        first, t, last = drawn["obs0"], drawn["t"], drawn["last"]
        span = horizon if horizon > 1 else self._nstep
        now = {"obs": first + t, "next_obs": first + np.minimum(t + span, last)}
        found = []
        for group, stack in self._plan()[:-1]:
            rows, before = stack_rows(now[group], first, stack)
            found.append(np.where(before, -1, rows % self._obs.size))
        steps = np.minimum(t[:, None] + np.arange(horizon), drawn["len"][:, None] - 1)
        return [*found, (drawn["step0"][:, None] + steps) % self._actions.size]

    def _moved(self, array: np.ndarray) -> torch.Tensor:
        tensor = torch.from_numpy(array)
        if self._device.type == "cuda":
            return tensor.pin_memory().to(self._device, non_blocking=True)
        return tensor.to(self._device)

    def _stacked(
        self, group: str, parts: dict[tuple[str, int], torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        return {k: self._stack(k, parts[group, self._stacks[k]]) for k in self._obs.rows}

    def _stack(self, key: str, rows: torch.Tensor) -> torch.Tensor:
        """Frames at ``rows`` [B * stack] -> [B, stack * C, ...]."""
        frames, stack = self._obs.rows[key], self._stacks[key]
        out = frames.index_select(0, rows.clamp(min=0))
        if stack == 1:
            return out
        out.masked_fill_((rows < 0).view(-1, *(1,) * (out.dim() - 1)), 0)
        batch = len(rows) // stack
        return out.view(batch, stack * out.shape[1], *out.shape[2:])


def joined(batches: list[Parts]) -> Parts:
    """One batch of several, row after row."""
    if len(batches) == 1:
        return batches[0]
    return {
        group: {k: torch.cat([b[group][k] for b in batches]) for k in keys}
        for group, keys in batches[0].items()
    }
