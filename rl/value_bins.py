"""Values as distributions over bins: HL-Gauss (Farebrother et al. 2024).

A critic that classifies outputs a logit for each bin of the known range of returns; its value is
the mean of the bins' centres by their probabilities. It learns by cross entropy to the TD target's
histogram, that of a normal distribution around the target, so that bins near it count as well.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import nn

from common_utils.ranges import Between, PositiveNumber

Edge = Annotated[float, Between(-1e6, 1e6)]


@dataclass
class ValueBinsConfig:
    """Bins over the range of returns."""

    # number of bins; 0: critics output values, and learn by squared error
    num: Annotated[int, Between(0, 1024)] = 0
    # the smallest return
    low: Edge = 0.0
    # the largest return: 1 for a reward of 1 at success
    high: Edge = 1.0
    # standard deviation of the normal distribution around a target, in widths of a bin
    sigma: PositiveNumber = 0.75

    def __post_init__(self) -> None:
        if self.num == 1:
            raise ValueError("num: 1, expected 0 or at least 2")
        if self.low >= self.high:
            raise ValueError(f"low: {self.low:g}, expected less than high {self.high:g}")


class ValueBins(nn.Module):
    """The bins of a critic."""

    centres: torch.Tensor
    edges: torch.Tensor

    def __init__(self, cfg: ValueBinsConfig) -> None:
        super().__init__()
        edges = torch.linspace(cfg.low, cfg.high, cfg.num + 1)
        self.sigma = cfg.sigma * (cfg.high - cfg.low) / cfg.num
        # they follow from the configuration
        self.register_buffer("edges", edges, persistent=False)
        self.register_buffer("centres", (edges[1:] + edges[:-1]) / 2, persistent=False)

    def values(self, logits: torch.Tensor) -> torch.Tensor:
        """Logits [..., bins] -> means [...]."""
        return torch.softmax(logits, dim=-1) @ self.centres

    def histogram(self, targets: torch.Tensor) -> torch.Tensor:
        """Targets [B], those outside the range at its end -> probabilities [B, bins]."""
        inside = targets.clamp(self.edges[0], self.edges[-1]).unsqueeze(-1)
        below = torch.erf((self.edges - inside) / (math.sqrt(2) * self.sigma))
        share = below[..., 1:] - below[..., :-1]
        return share / share.sum(dim=-1, keepdim=True)

    def loss(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Cross entropy of logits [B, M, bins] to targets [B] -> [B, M]."""
        wanted = self.histogram(targets).unsqueeze(1)
        return -(wanted * torch.log_softmax(logits, dim=-1)).sum(dim=-1)


def bins_of(cfg: ValueBinsConfig | None) -> ValueBins | None:
    """None where values are numbers."""
    return ValueBins(cfg) if cfg is not None and cfg.num else None
