"""Base of policies that regress on demonstrated actions without normalising them."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch

from bc.base import BasePolicy, PolicyInputs, batch_action
from common_utils.specs import Obs
from networks.exported import Graphs, action_graph, input_ports, statistics


def check_prop(use_prop: int, inputs: PolicyInputs) -> None:
    """Raise ValueError if ``use_prop`` is 1 but the data have no proprioception."""
    if use_prop and not inputs.prop_shape:
        raise ValueError("use_prop: 1, expected 0: there is no proprioception")


class ExplicitPolicy(BasePolicy):
    """A policy that maps an observation to one action; subclasses compute :meth:`forward`."""

    @abstractmethod
    def forward(self, obs: Obs) -> torch.Tensor:
        """Batched observations -> actions [B, A] in [-1, 1]."""

    def augment(self, obs: Obs) -> Obs:
        """Augmented observations [B, ...] for training; the caller's dict is not changed."""
        return obs

    def _act(self, inputs: Obs, greedy: bool, generator: torch.Generator | None) -> torch.Tensor:
        return self(inputs)

    def _propose(self, inputs: Obs, n: int, generator: torch.Generator | None) -> torch.Tensor:
        """The same action n times."""
        return self(inputs).unsqueeze(1).expand(-1, n, -1)

    def graphs(self) -> Graphs:
        """See :class:`BasePolicy`."""
        norms = {"state": statistics(getattr(self, "normalizer", None))}
        ports = input_ports(self.input_specs(), norms)
        return {"action": action_graph(self, self, ports, self.action_dim)}

    def loss(self, batch: Any) -> torch.Tensor:
        """Squared error summed over action dimensions, averaged over the batch (a scalar)."""
        inputs, _ = self._read(batch.obs)
        pred = self(self.augment(inputs))
        target = batch_action(batch).to(pred.device)
        if target.shape != pred.shape:
            raise ValueError(
                f"{type(self).__name__}.loss: actions must be {list(pred.shape)}, "
                f"got {list(target.shape)}"
            )
        return (pred - target).square().sum(1).mean()
