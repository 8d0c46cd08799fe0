"""A BC policy as somebody would add one: this file, and one row in ``bc.registry``.

A Gaussian around a small perceptron's action: it takes statistics of the data, draws in training
and when acting, and reports a metric, so that it needs everything that training gives a policy.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from bc.base import BasePolicy, PolicyConfig, PolicyInputs, batch_action
from bc.registry import PolicyKind
from common_utils.specs import ArraySpec, Obs
from networks.normalizer import Normalizer


@dataclass
class ToyPolicyConfig(PolicyConfig):
    """The toy policy."""

    # width of the hidden layer
    width: int = 32
    # standard deviation of drawn actions, and of the noise on states in training
    noise: float = 0.1

    def __post_init__(self) -> None:
        if self.noise < 0:
            raise ValueError(f"noise: {self.noise}, expected 0 or more")


class ToyPolicy(BasePolicy):
    """{"state": float32 [B, S]} -> actions drawn around tanh(MLP(s))."""

    stochastic_eval = True

    def __init__(self, state_dim: int, action_dim: int, cfg: ToyPolicyConfig) -> None:
        super().__init__()
        self.state_dim, self.action_dim, self.cfg = state_dim, action_dim, cfg
        self.norm = Normalizer(state_dim)
        self.net = nn.Sequential(
            nn.Linear(state_dim, cfg.width), nn.ReLU(), nn.Linear(cfg.width, action_dim), nn.Tanh()
        )

    @classmethod
    def build(cls, inputs: PolicyInputs, cfg: ToyPolicyConfig) -> ToyPolicy:
        return cls(inputs.obs_shape[0], inputs.action_dim, cfg)

    def input_specs(self) -> dict[str, ArraySpec]:
        return {"state": ArraySpec((self.state_dim,))}

    def fit(self, batches: Iterable[Any]) -> None:
        self.norm.fit(torch.cat([batch.obs["state"] for batch in batches]))

    def _around(self, x: torch.Tensor, rng: torch.Generator) -> torch.Tensor:
        return x + self.cfg.noise * torch.randn(x.shape, generator=rng, device=x.device)

    def loss(self, batch: Any) -> torch.Tensor:
        inputs, _ = self._read(batch.obs)
        pred = self.net(self._around(self.norm(inputs["state"]), self.generator))
        error = (pred - batch_action(batch).to(pred.device)).square().sum(1).mean()
        self.metrics = {"toy_error": error.detach()}
        return error

    def _act(self, inputs: Obs, greedy: bool, generator: torch.Generator | None) -> torch.Tensor:
        return self._propose(inputs, 1, generator).squeeze(1)

    def _propose(self, inputs: Obs, n: int, generator: torch.Generator | None) -> torch.Tensor:
        action = self.net(self.norm(inputs["state"])).unsqueeze(1).expand(-1, n, -1)
        return self._around(action, self.rng_for(generator)).clamp(-1, 1)


ROW = PolicyKind(ToyPolicyConfig, ToyPolicy.build, ("state",), "toy")
