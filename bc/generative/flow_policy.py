"""A flow-matching policy: actions are samples that a learned velocity field makes of noise."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Any

import torch
from torch import nn

from bc.base import PolicyConfig
from bc.normalized import NormalizedPolicy, NormConfig
from common_utils import rows
from common_utils.ranges import Between
from common_utils.specs import Obs
from networks.flow import VelocityConfig, VelocityNet, flow_loss, integrate

Steps = Annotated[int, Between(1, 1000)]


def _bounded() -> NormConfig:
    return NormConfig(min_max_actions=1)


@dataclass
class FlowPolicyConfig(PolicyConfig):
    """The flow-matching policy."""

    # the velocity field
    net: VelocityConfig = field(default_factory=VelocityConfig)
    # Euler steps from noise to an action
    steps: Steps = 10
    # normalisation; actions to [-1, 1] unless norm.min_max_actions is 0
    norm: NormConfig = field(default_factory=_bounded)

    @property
    def draws_in_training(self) -> bool:
        """See :class:`PolicyConfig`."""
        return True


class FlowPolicy(NormalizedPolicy):
    """Trained on straight paths from noise to the demonstrated action; acts by integrating.

    Sampling and loss as in flow Q-learning and Q-chunking (Park et al., Li et al. 2025).
    """

    config_class = FlowPolicyConfig
    cfg: FlowPolicyConfig
    net: VelocityNet
    stochastic_eval = True

    def make_net(self) -> nn.Module:
        """See :class:`NormalizedPolicy`."""
        return VelocityNet(self.obs_shape[0], self.action_dim, self.cfg.net)

    def network_pass(self, inputs: Obs) -> Any:
        """See :class:`BasePolicy`."""
        features = self.features(inputs)
        points = features.new_zeros(len(features), 1, self.action_dim)
        return self.net(features, points, points[..., :1])

    def loss(self, batch: Any) -> torch.Tensor:
        """Squared error of the velocity, averaged over action dimensions and the batch."""
        inputs, _ = self._read(batch.obs)
        features = self.features(inputs)
        data = self.target(batch, features.device).unsqueeze(1)
        options = {"generator": self.generator, "device": features.device}
        noise = rows.drawn(partial(torch.randn, **options), data.shape)
        time = rows.drawn(partial(torch.rand, **options), (*data.shape[:2], 1))
        return flow_loss(self.net.field(features), data, noise, time).mean()

    def _act_normalized(
        self, features: torch.Tensor, greedy: bool, rng: torch.Generator
    ) -> torch.Tensor:
        return self._propose_normalized(features, 1, rng).squeeze(1)

    def _propose_normalized(
        self, features: torch.Tensor, n: int, rng: torch.Generator
    ) -> torch.Tensor:
        shape = (len(features), n, self.action_dim)
        noise = rows.drawn(partial(torch.randn, generator=rng, device=features.device), shape)
        return integrate(self.net.field(features), noise, self.cfg.steps)
