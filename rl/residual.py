"""Residual actors: corrections of BC proposals (ResFiT; Ankile et al. 2025).

Such an actor sees the observation and a proposal, and moves the proposal by a bounded step. With
several proposals it corrects each, so that the critics choose among corrected (and plain) ones.
"""

from __future__ import annotations

import torch
from torch import nn

from common_utils.ibrl_utils import TruncatedNormal
from common_utils.specs import Obs

BASE = "base"
"""The key, among features, of the actions that are corrected: float32 [B, N, W]; of an actor's
input, where each has a row of its own, [B * N, W]."""


def corrected(step: torch.Tensor, obs: Obs, residual: float) -> torch.Tensor:
    """An actor's output [B, A] within [-1, 1] as an action: as it is, or with ``residual`` above 0
    a step of at most that from ``obs[BASE]`` [B, A]."""
    return step if not residual else (obs[BASE] + residual * step).clamp(-1, 1)


def begin_at_base(last: nn.Linear) -> None:
    """A residual actor corrects nothing at first."""
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)


def for_each(obs: Obs) -> Obs:
    """Features of B observations with bases [B, N, A], if any, as those of their B * N bases."""
    if BASE not in obs:
        return obs
    base = obs[BASE]
    rest = {k: v.repeat_interleave(base.size(1), 0) for k, v in obs.items() if k != BASE}
    return {**rest, BASE: base.flatten(0, 1)}


def actions_of(actor: nn.Module, obs: Obs, std: float | torch.Tensor) -> TruncatedNormal:
    """The actor's distribution, of B observations or of their B * N bases, [B * N, A]."""
    return actor(for_each(obs), std)


def each_row(actions: torch.Tensor, obs: Obs) -> torch.Tensor:
    """[B * N, A] of :func:`actions_of` -> [B, N, A]; N is 1 without bases."""
    return actions.unflatten(0, (-1, obs[BASE].size(1) if BASE in obs else 1))
