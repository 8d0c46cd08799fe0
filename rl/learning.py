"""BC policies that keep learning from the replay while the critics choose among their proposals.

In Q-chunking (Li et al. 2025) the policy that proposes is trained by imitation alone, on whatever
the replay holds: demonstrations, and the agent's own steps. A critic that prefers some of its
proposals changes what is in the replay, and so in time what is proposed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, cast, runtime_checkable

import torch
from torch import nn

from common_utils import ranks
from common_utils.errors import ConfigError
from common_utils.specs import Batch, Policy
from networks.optim import Adam, descend


@runtime_checkable
class Draws(Protocol):
    """A policy that draws from a generator of its own while it learns."""

    def rng_state(self) -> dict[str, Any]:
        """Its generator's state."""
        ...

    def set_rng_state(self, state: dict[str, Any]) -> None:
        """Inverse of :meth:`rng_state`."""
        ...


class Learning(nn.Module):
    """The policies and their optimiser; part of the agent's checkpoint.

    Args:
        lr: step size of Adam; 0: policies are frozen, and none is here.
        horizon: steps of a row of the agent's batches.
    """

    def __init__(self, lr: float, horizon: int) -> None:
        super().__init__()
        self.lr, self.horizon = lr, horizon
        self.policies = nn.ModuleList()
        self.opt: Adam | None = None

    def add(self, policy: Policy) -> None:
        """Let this policy learn, if any shall. ConfigError if it cannot learn from the batches."""
        if not self.lr:
            return
        length = getattr(policy, "chunk_length", self.horizon)
        if length != self.horizon:
            raise ConfigError(
                f"bc_lr: {self.lr:g}: {type(policy).__name__} learns chunks of {length}, expected "
                f"horizon {self.horizon}; or 0, to leave it as it is"
            )
        if ranks.world() > 1:
            raise ConfigError(f"bc_lr: {self.lr:g}, expected 0 with several ranks (torchrun)")
        module = cast(nn.Module, policy).requires_grad_(True)
        self.policies.append(module)
        self.opt = Adam([*self.policies.parameters()], self.lr)

    def __bool__(self) -> bool:
        return len(self.policies) > 0

    @property
    def input_keys(self) -> list[str]:
        """What they read of the batches' observations."""
        return [key for policy in self.policies for key in cast(Any, policy).input_specs()]

    def update(self, batch: Batch) -> dict[str, torch.Tensor]:
        """One step on the sum of their losses on the agent's batch."""
        assert self.opt is not None  # there are some
        self.train()
        losses = [cast(Policy, policy).loss(batch) for policy in self.policies]
        descend(torch.stack(losses).sum(), self.opt)
        self.eval()
        return {"train/bc_loss": torch.stack(losses).detach().mean()}

    def optimizers(self) -> dict[str, Adam]:
        """By name; empty without policies."""
        return {} if self.opt is None else {"bc": self.opt}

    def rng_states(self) -> list[dict[str, Any]]:
        """Of the policies that draw, in order."""
        return [p.rng_state() for p in self.policies if isinstance(p, Draws)]

    def set_rng_states(self, states: Sequence[Mapping[str, Any]]) -> None:
        """Inverse of :meth:`rng_states`."""
        drawing = (p for p in self.policies if isinstance(p, Draws))
        for policy, state in zip(drawing, states, strict=True):
            policy.set_rng_state(dict(state))
