"""Explicit regression with the networks and normalisation of Implicit BC."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from bc.normalized import ChunkedConfig, NormalizedPolicy, NormConfig
from common_utils.specs import Obs
from networks.exported import Graphs, action_graph
from networks.ibc.mlp import MLPMSE, MLPConfig
from networks.ibc.pixel import ConvMLPConfig, ConvMLPMSE


@dataclass
class MsePolicyConfig(ChunkedConfig):
    """The explicit policy."""

    # the network for states
    net: MLPConfig = field(default_factory=MLPConfig)
    # the network for images (dataset.use_state 0)
    pixel: ConvMLPConfig = field(default_factory=ConvMLPConfig)
    # normalisation
    norm: NormConfig = field(default_factory=NormConfig)


class MsePolicy(NormalizedPolicy):
    """Predicts one action, by squared error in normalised action space; deterministic."""

    config_class = MsePolicyConfig
    cfg: MsePolicyConfig

    def make_net(self) -> nn.Module:
        """See :class:`NormalizedPolicy`."""
        if self.pixels:
            return ConvMLPMSE(self.stack, self.width, self.cfg.pixel)
        return MLPMSE(self.obs_shape[0], self.width, self.cfg.net)

    def graphs(self) -> Graphs:
        """See :class:`BasePolicy`."""
        if self.chunked:
            return super().graphs()

        def act(obs: Obs) -> torch.Tensor:
            return self.to_env(self.net(self.features(obs)))

        return {"action": action_graph(self, act, self.ports(), self.action_dim)}

    def loss(self, batch: Any) -> torch.Tensor:
        """Squared error averaged over action dimensions and the batch."""
        inputs, _ = self._read(batch.obs)
        pred = self.net(self.features(inputs))
        return (pred - self.target(batch, pred.device)).square().mean()

    def _act_normalized(
        self, features: torch.Tensor, greedy: bool, rng: torch.Generator
    ) -> torch.Tensor:
        return self.net(features)

    def _propose_normalized(
        self, features: torch.Tensor, n: int, rng: torch.Generator
    ) -> torch.Tensor:
        return self.net(features).unsqueeze(1).expand(-1, n, -1)
