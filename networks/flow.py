"""Flow matching: a velocity field that carries noise to data (Lipman et al., ICLR 2023).

Along a straight path x(u) = (1 - u) z + u c from noise z (u = 0) to a sample c of the data (u = 1)
the velocity is c - z. The network learns its mean given x and u; integrating that from fresh noise
gives fresh samples. Here c is an action, and the network also sees features of the observation.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import nn

from common_utils.ranges import Between, Layers, Width

# (points [..., W], time [..., 1]) -> velocities [..., W]
Velocity = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
LONGEST_WAVE = 10_000.0  # period of the slowest time feature, in units of u / 2 pi


@dataclass
class VelocityConfig:
    """The network of a flow."""

    # units of a hidden layer
    hidden_dim: Width = 512
    # hidden layers
    num_layer: Layers = 4
    # 0: the time is one input; else so many sines and cosines of it
    time_features: Annotated[int, Between(0, 1024)] = 0

    def __post_init__(self) -> None:
        if self.time_features % 2:
            raise ValueError(f"time_features: {self.time_features}, expected an even number")


class VelocityNet(nn.Module):
    """Features of an observation [B, D], points [B, n, W] and times [B, n, 1] -> [B, n, W].

    A perceptron with GELU over all three. The part of its first layer that sees the observation is
    computed once for the n points of a row, and by :meth:`field` once for all steps.
    """

    def __init__(self, feature_dim: int, width: int, cfg: VelocityConfig) -> None:
        super().__init__()
        self.width, self.time_features = width, cfg.time_features
        hidden = cfg.hidden_dim
        self.obs = nn.Linear(feature_dim, hidden)
        self.point = nn.Linear(width + (cfg.time_features or 1), hidden, bias=False)
        self.rest = nn.ModuleList(nn.Linear(hidden, hidden) for _ in range(cfg.num_layer - 1))
        self.out = nn.Linear(hidden, width)

    def field(self, features: torch.Tensor) -> Velocity:
        """The velocity field of observations [B, D], for points [B, n, W]."""
        seen = self.obs(features).unsqueeze(1)

        def velocity(points: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
            known = torch.cat([points, self._time(time.expand(*points.shape[:-1], 1))], -1)
            x = F.gelu(seen + self.point(known))
            for layer in self.rest:
                x = F.gelu(layer(x))
            return self.out(x)

        return velocity

    def _time(self, time: torch.Tensor) -> torch.Tensor:
        if not self.time_features:
            return time
        half = self.time_features // 2
        places = torch.arange(half, device=time.device) / max(half - 1, 1)
        angles = 2 * math.pi * time * torch.exp(places * math.log(LONGEST_WAVE)) / LONGEST_WAVE
        return torch.cat([angles.sin(), angles.cos()], -1)

    def forward(
        self, features: torch.Tensor, points: torch.Tensor, time: torch.Tensor
    ) -> torch.Tensor:
        """See the class."""
        return self.field(features)(points, time)


def flow_loss(
    velocity: Velocity, data: torch.Tensor, noise: torch.Tensor, time: torch.Tensor
) -> torch.Tensor:
    """Squared error of the velocity at points of the paths from ``noise`` to ``data``.

    All are [B, n, W], time [B, n, 1] in [0, 1]; returns the mean over W, [B, n].
    """
    points = torch.lerp(noise, data, time)
    return (velocity(points, time) - (data - noise)).square().mean(-1)


def integrate(velocity: Velocity, noise: torch.Tensor, steps: int) -> torch.Tensor:
    """Follow the field from ``noise`` [..., W] at time 0 to time 1 by ``steps`` Euler steps."""
    x = noise
    for k in range(steps):
        x = x + velocity(x, x.new_full((1,), k / steps)) / steps
    return x
