"""Input normaliser that lives in a policy's weights, so that a checkpoint is self-contained."""

from __future__ import annotations

import torch
from torch import nn


class Normalizer(nn.Module):
    """(x - mean) / std per dimension; the identity until :meth:`fit` or a checkpoint sets it."""

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("std", torch.ones(dim))

    @torch.no_grad()
    def fit(self, data: torch.Tensor, min_std: float = 0.02) -> None:
        """Take mean and standard deviation of data [N, dim], the latter at least ``min_std``.

        The floor keeps dimensions that hardly move in the data from being blown up.
        Raises ValueError when the data are empty, of another width or not finite.
        """
        dim = self.mean.numel()
        if data.dim() != 2 or data.size(1) != dim or data.size(0) == 0:
            raise ValueError(f"Normalizer: needs data [N > 0, {dim}], got {list(data.shape)}")
        data = data.double()
        if not bool(torch.isfinite(data).all()):
            raise ValueError("Normalizer: the data hold NaN or infinite values")
        self.mean.copy_(data.mean(0))
        self.std.copy_(data.std(0, correction=0).clamp(min=min_std))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x [..., dim] -> the same shape."""
        return (x - self.mean) / self.std
