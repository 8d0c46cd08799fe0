"""Flow matching: a velocity field that carries noise to data (Lipman et al., ICLR 2023).

Along a straight path x(u) = (1 - u) z + u c from noise z (u = 0) to a sample c of the data (u = 1)
the velocity is c - z. The network learns its mean given x and u; integrating that from fresh noise
gives fresh samples. Here c is an action or a chunk of them, and the network also sees features of
the observation. ``networks.diffusion`` makes samples with the same networks.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Literal, Protocol

import torch
from torch import nn

from common_utils.ranges import Between, Layers, Width
from networks.mlp import MLP

# (points [B, n, W], time [B, n, 1] or [1]) -> velocities [B, n, W]
Velocity = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
LONGEST_WAVE = 10_000.0  # period of the slowest time feature, in units of u / 2 pi


@dataclass
class VelocityConfig:
    """The network of a flow or a diffusion."""

    # mlp: a perceptron over everything; transformer: attention among the steps of a chunk and of
    # the history
    kind: Literal["mlp", "transformer"] = "mlp"
    # units of a hidden layer
    hidden_dim: Width = 512
    # hidden layers, or blocks of the transformer
    num_layer: Layers = 4
    # mlp: gelu, as published, or relu, with which the kernels compute a pass in one call
    activation: Literal["gelu", "relu"] = "gelu"
    # 0: the time is one input; else so many sines and cosines of it
    time_features: Annotated[int, Between(0, 1024)] = 0
    # heads of the transformer's attention
    num_head: Annotated[int, Between(1, 64)] = 4

    def __post_init__(self) -> None:
        if self.time_features % 2:
            raise ValueError(f"time_features: {self.time_features}, expected an even number")
        if self.kind == "transformer" and self.hidden_dim % self.num_head:
            raise ValueError(
                f"hidden_dim: {self.hidden_dim}, expected a multiple of num_head {self.num_head}"
            )


ACTIVATIONS: dict[str, type[nn.Module]] = {"gelu": nn.GELU, "relu": nn.ReLU}


class FieldNet(Protocol):
    """What :data:`FIELD_NETS` lists: a module over features [B, D]."""

    def field(self, features: torch.Tensor) -> Velocity:
        """The velocities of observations, of which all that does not depend on points and time is
        computed here, once."""


def field_net(
    feature_dim: int, history: int, length: int, action_dim: int, cfg: VelocityConfig
) -> nn.Module:
    """The configured network over features [B, ``feature_dim``] of ``history`` steps, oldest
    first, and points [B, n, ``length`` * ``action_dim``]."""
    if cfg.kind == "mlp":
        return VelocityNet(feature_dim, length * action_dim, cfg)
    return VelocityTransformer(feature_dim, history, length, action_dim, cfg)


def time_features(time: torch.Tensor, number: int) -> torch.Tensor:
    """Times [..., 1] in [0, 1] as they are (0), or as ``number`` sines and cosines."""
    if not number:
        return time
    half = number // 2
    places = torch.arange(half, device=time.device) / max(half - 1, 1)
    angles = 2 * math.pi * time * torch.exp(places * math.log(LONGEST_WAVE)) / LONGEST_WAVE
    return torch.cat([angles.sin(), angles.cos()], -1)


class VelocityNet(nn.Module):
    """Features of an observation [B, D], points [B, n, W] and times [B, n, 1] -> [B, n, W].

    A perceptron over all three. The part of its first layer that sees the observation is
    computed once for the n points of a row, and by :meth:`field` once for all steps. When acting,
    all points have the same time, whose part is then computed once as well.
    """

    def __init__(self, feature_dim: int, width: int, cfg: VelocityConfig) -> None:
        super().__init__()
        self.width, self.time_features = width, cfg.time_features
        hidden = cfg.hidden_dim
        self.obs = nn.Linear(feature_dim, hidden)
        self.time = nn.Linear(cfg.time_features or 1, hidden, bias=False)
        self.point = nn.Linear(width, hidden, bias=False)
        layers: list[nn.Module] = []
        for _ in range(cfg.num_layer - 1):
            layers += [nn.Linear(hidden, hidden), ACTIVATIONS[cfg.activation]()]
        self.first = ACTIVATIONS[cfg.activation]()
        self.rest = MLP(*layers, nn.Linear(hidden, width))

    def field(self, features: torch.Tensor) -> Velocity:
        """See :class:`FieldNet`."""
        seen = self.obs(features).unsqueeze(1)

        def velocity(points: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
            known = seen + self.time(time_features(time, self.time_features))
            return self.rest(self.first(known + self.point(points)))

        return velocity

    def forward(
        self, features: torch.Tensor, points: torch.Tensor, time: torch.Tensor
    ) -> torch.Tensor:
        """See the class."""
        return self.field(features)(points, time)


class VelocityTransformer(nn.Module):
    """The same by attention: a token for each step of the history, one for the time, and one for
    each action of the chunk; the velocities are read off the last ones.

    Blocks normalise before attention and perceptron (pre-LN). Attention goes both ways: unlike in
    Chi et al. (2023) earlier actions see later ones, since a chunk is made all at once.
    """

    def __init__(
        self, feature_dim: int, history: int, length: int, action_dim: int, cfg: VelocityConfig
    ) -> None:
        super().__init__()
        hidden = cfg.hidden_dim
        self.history, self.length, self.time_features = history, length, cfg.time_features
        self.obs = nn.Linear(feature_dim // history, hidden)
        self.time = nn.Linear(cfg.time_features or 1, hidden)
        self.point = nn.Linear(action_dim, hidden)
        self.places = nn.Parameter(torch.empty(history + 1 + length, hidden).normal_(std=0.02))
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(
                hidden, cfg.num_head, 4 * hidden, 0.0, "gelu", batch_first=True, norm_first=True
            )
            for _ in range(cfg.num_layer)
        )
        self.norm = nn.LayerNorm(hidden)
        self.out = nn.Linear(hidden, action_dim)

    def field(self, features: torch.Tensor) -> Velocity:
        """See :class:`FieldNet`."""
        seen = self.obs(features.unflatten(1, (self.history, -1)))

        def velocity(points: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
            rows, num, _ = points.shape
            when = time_features(time.expand(rows, num, 1), self.time_features)
            tokens = [
                seen.unsqueeze(1).expand(-1, num, -1, -1),
                self.time(when).unsqueeze(2),
                self.point(points.unflatten(-1, (self.length, -1))),
            ]
            x = torch.cat(tokens, 2).flatten(0, 1) + self.places
            for block in self.blocks:
                x = block(x)
            x = self.out(self.norm(x[:, -self.length :]))
            return x.reshape(rows, num, -1)

        return velocity

    def forward(
        self, features: torch.Tensor, points: torch.Tensor, time: torch.Tensor
    ) -> torch.Tensor:
        """See the class."""
        return self.field(features)(points, time)


def flow_loss(
    velocity: Velocity, data: torch.Tensor, noise: torch.Tensor, time: torch.Tensor
) -> torch.Tensor:
    """Squared error of the velocity at points of the paths from ``noise`` to ``data``.

    All are [B, n, W], time [B, n, 1] in [0, 1]; returns [B, n, W].
    """
    points = torch.lerp(noise, data, time)
    return (velocity(points, time) - (data - noise)).square()


def integrate(velocity: Velocity, noise: torch.Tensor, steps: int) -> torch.Tensor:
    """Follow the field from ``noise`` [..., W] at time 0 to time 1 by ``steps`` Euler steps."""
    x = noise
    for k in range(steps):
        x = torch.add(x, velocity(x, x.new_full((1,), k / steps)), alpha=1 / steps)
    return x
