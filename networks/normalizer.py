"""Input normaliser that lives in a policy's weights, so that a checkpoint is self-contained."""

from __future__ import annotations

import torch
from torch import nn

from common_utils.specs import SpecError


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

        The minimum keeps dimensions that hardly move in the data from being scaled up too far.
        Raises SpecError when the data are empty, of another width or not finite.
        """
        dim = self.mean.numel()
        if data.dim() != 2 or data.size(1) != dim or data.size(0) == 0:
            raise SpecError(f"Normalizer: needs data [N > 0, {dim}], got {list(data.shape)}")
        data = data.double()
        if not bool(torch.isfinite(data).all()):
            raise SpecError("Normalizer: the data hold NaN or infinite values")
        self.mean.copy_(data.mean(0))
        self.std.copy_(data.std(0, correction=0).clamp(min=min_std))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x [..., dim] -> the same shape."""
        return (x - self.mean) / self.std


# tf-agents' floor of divisors: the rounding unit of float32
MIN_SCALE = 1.1920929e-07


class AffineNormalizer(nn.Module):
    """normalize(x) = (x - offset) / scale per dimension; the identity until fitted or loaded.

    The observation and action normaliser of Implicit BC: unlike :class:`Normalizer` it goes
    both ways, and dimensions that do not move in the data get (almost) no floor.
    """

    offset: torch.Tensor
    scale: torch.Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.register_buffer("offset", torch.zeros(dim))
        self.register_buffer("scale", torch.ones(dim))

    def fit_standard(self, data: torch.Tensor, *, sqrt_std: bool = False) -> None:
        """Mean and population standard deviation of data [N, dim]; its square root if asked.

        Raises SpecError when the data are empty, of another width or not finite.
        """
        data = self._checked(data)
        std = data.std(0, correction=0)
        self.set(data.mean(0), std.sqrt() if sqrt_std else std)

    def fit_min_max(self, data: torch.Tensor) -> None:
        """The range of data [N, dim] becomes [-1, 1]; errors as :meth:`fit_standard`."""
        data = self._checked(data)
        low, high = data.amin(0), data.amax(0)
        self.set((low + high) / 2, (high - low) / 2)

    def _checked(self, data: torch.Tensor) -> torch.Tensor:
        dim = self.offset.numel()
        if data.dim() != 2 or data.size(1) != dim or data.size(0) == 0:
            raise SpecError(f"AffineNormalizer: needs data [N > 0, {dim}], got {list(data.shape)}")
        data = data.double()
        if not bool(torch.isfinite(data).all()):
            raise SpecError("AffineNormalizer: the data hold NaN or infinite values")
        return data

    @torch.no_grad()
    def set(self, offset: torch.Tensor, scale: torch.Tensor) -> None:
        """Use these, [dim] each; scales are at least MIN_SCALE."""
        self.offset.copy_(offset)
        self.scale.copy_(scale.clamp(min=MIN_SCALE))

    def normalize(self, x: torch.Tensor) -> torch.Tensor:
        """x [..., dim] -> the same shape."""
        return (x - self.offset) / self.scale

    def denormalize(self, x: torch.Tensor) -> torch.Tensor:
        """Inverse of :meth:`normalize`."""
        return x * self.scale + self.offset

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """:meth:`normalize`."""
        return self.normalize(x)
