"""A mixture of Gaussians over actions (docs/reference/ibc.md#losses)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from bc.normalized import ChunkedConfig, NormalizedPolicy, NormConfig
from common_utils.config_types import Flag
from common_utils.specs import Obs
from networks.exported import Graphs, action_graph
from networks.ibc.mlp import MLPMDN, MDNConfig
from networks.ibc.pixel import ConvMDNConfig, ConvMLPMDN


@dataclass
class MdnPolicyConfig(ChunkedConfig):
    """The mixture density policy."""

    # the network for states
    net: MDNConfig = field(default_factory=MDNConfig)
    # the network for images (dataset.use_state 0)
    pixel: ConvMDNConfig = field(default_factory=ConvMDNConfig)
    # normalisation
    norm: NormConfig = field(default_factory=NormConfig)
    # 0: evaluation samples from the mixture, as published; 1: it uses the densest centre
    greedy_eval: Flag = 0


class MdnPolicy(NormalizedPolicy):
    """Trained by likelihood of the normalised action; acts by sampling."""

    config_class = MdnPolicyConfig
    cfg: MdnPolicyConfig
    stochastic_eval = True

    def make_net(self) -> nn.Module:
        """See :class:`NormalizedPolicy`."""
        if self.pixels:
            return ConvMLPMDN(self.stack, self.width, self.cfg.pixel)
        return MLPMDN(self.obs_shape[0], self.width, self.cfg.net)

    def graphs(self) -> Graphs:
        """See :class:`BasePolicy`."""
        if self.chunked:
            return super().graphs()

        def act(obs: Obs) -> torch.Tensor:
            return self.to_env(self.net(self.features(obs)).greedy())

        note = "the densest centre of the mixture, as with mdn.greedy_eval 1; nothing is drawn"
        ports, width = self.ports(), self.action_dim
        return {"action": action_graph(self, act, ports, width, note, chooses=True)}

    def loss(self, batch: Any) -> torch.Tensor:
        """Negative log likelihood of the normalised action, averaged over the batch."""
        inputs, _ = self._read(batch.obs)
        features = self.features(inputs)
        return -self.net(features).log_prob(self.target(batch, features.device)).mean()

    def _act_normalized(
        self, features: torch.Tensor, greedy: bool, rng: torch.Generator
    ) -> torch.Tensor:
        mixture = self.net(features)
        if greedy and self.cfg.greedy_eval:
            return mixture.greedy()
        return mixture.sample(1, generator=rng).squeeze(1)

    def _propose_normalized(
        self, features: torch.Tensor, n: int, rng: torch.Generator
    ) -> torch.Tensor:
        return self.net(features).sample(n, generator=rng)
