"""Actors that map noise to actions in one pass, taught by a flow.

A flow policy follows a learned velocity from noise to an action, step by step. Such an actor sees
the observation and the noise, imitates where the flow ends, and ascends the critics' values (flow
Q-learning; Park et al. 2025). Over chunks of actions Q-chunking calls it QC-FQL.
"""

from __future__ import annotations

from functools import partial
from typing import Protocol, runtime_checkable

import torch

from common_utils import ranks, rows
from common_utils.errors import ConfigError
from common_utils.specs import Obs, Policy


@runtime_checkable
class Flows(Protocol):
    """A policy whose actions are a function of noise."""

    def follow(self, obs: Obs, noise: torch.Tensor) -> torch.Tensor:
        """Batched observations and noise [B, n, W] -> actions float32 [B, n, W] in [-1, 1]."""
        ...


def teacher(policies: list[Policy], horizon: int) -> Flows:
    """The policy that teaches: the only one, whose chunks are the agent's. ConfigError if it
    cannot."""
    if ranks.world() > 1:
        raise ConfigError("distill: expected 0 with several ranks (torchrun)")
    found = "none" if not policies else " and ".join(type(p).__name__ for p in policies)
    if len(policies) == 1 and isinstance(policies[0], Flows):
        length = getattr(policies[0], "chunk_length", horizon)
        if length == horizon:
            return policies[0]
        found = f"{found} over chunks of {length}"
    raise ConfigError(
        f"distill: found {found} to learn from, expected one flow policy over chunks of horizon "
        f"{horizon}"
    )


def draw(num: int, width: int, device: torch.device, rng: torch.Generator | None) -> torch.Tensor:
    """Noise [num, 1, width]."""
    return rows.drawn(partial(torch.randn, generator=rng, device=device), (num, 1, width))
