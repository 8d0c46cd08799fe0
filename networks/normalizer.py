"""Input normaliser that lives in a policy's weights, so that a checkpoint is self-contained."""

from __future__ import annotations

from typing import Literal

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
        """Set mean and standard deviation from data [N, dim], the latter to at least ``min_std``.

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
# a dimension that varies by less than this share of its size (or of 1) counts as constant
STILL = 1e-5

Floor = Literal["safe", "published"]
"""The divisor of a dimension that is constant in the data: its own size (at least 1), so that a
new value stays a small number, or :data:`MIN_SCALE`, as published.
"""


def still_dims(offset: torch.Tensor, spread: torch.Tensor) -> torch.Tensor:
    """Bool [dim]: which dimensions are (almost) constant, by centre and spread, [dim] each."""
    return spread <= STILL * offset.abs().clamp(min=1)


def divisors(
    offset: torch.Tensor, scale: torch.Tensor, still: torch.Tensor, floor: Floor
) -> torch.Tensor:
    """``scale`` [dim], with the floor's divisor for dimensions that are ``still``."""
    scale = scale.clamp(min=MIN_SCALE)
    return scale if floor == "published" else torch.where(still, offset.abs().clamp(min=1), scale)


class AffineNormalizer(nn.Module):
    """normalize(x) = (x - offset) / scale per dimension; the identity until fitted or loaded.

    The observation and action normaliser of Implicit BC: unlike :class:`Normalizer` it works both
    ways, and its floor applies only to dimensions that are constant in the data (:data:`Floor`).
    """

    offset: torch.Tensor
    scale: torch.Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.register_buffer("offset", torch.zeros(dim))
        self.register_buffer("scale", torch.ones(dim))

    def fit_standard(
        self, data: torch.Tensor, *, sqrt_std: bool = False, floor: Floor = "safe"
    ) -> list[int]:
        """Mean and population standard deviation of data [N, dim]; its square root if asked.

        Returns the dimensions that are constant. Raises SpecError when the data are empty, of
        another width or not finite.
        """
        data = self._checked(data)
        return self.set(data.mean(0), data.std(0, correction=0), sqrt_std=sqrt_std, floor=floor)

    def fit_min_max(self, data: torch.Tensor, *, floor: Floor = "safe") -> list[int]:
        """Map the range of data [N, dim] to [-1, 1]; otherwise as :meth:`fit_standard`."""
        data = self._checked(data)
        low, high = data.amin(0), data.amax(0)
        return self.set((low + high) / 2, (high - low) / 2, floor=floor)

    def _checked(self, data: torch.Tensor) -> torch.Tensor:
        dim = self.offset.numel()
        if data.dim() != 2 or data.size(1) != dim or data.size(0) == 0:
            raise SpecError(f"AffineNormalizer: needs data [N > 0, {dim}], got {list(data.shape)}")
        data = data.double()
        if not bool(torch.isfinite(data).all()):
            raise SpecError("AffineNormalizer: the data hold NaN or infinite values")
        return data

    @torch.no_grad()
    def set(
        self,
        offset: torch.Tensor,
        spread: torch.Tensor,
        *,
        sqrt_std: bool = False,
        floor: Floor = "safe",
    ) -> list[int]:
        """Centre and divide by these, [dim] each; returns the dimensions that are constant."""
        still = still_dims(offset, spread)
        scale = divisors(offset, spread.sqrt() if sqrt_std else spread, still, floor)
        self.offset.copy_(offset)
        self.scale.copy_(scale)
        return still.nonzero().flatten().tolist()

    def normalize(self, x: torch.Tensor) -> torch.Tensor:
        """x [..., dim] -> the same shape."""
        return (x - self.offset) / self.scale

    def denormalize(self, x: torch.Tensor) -> torch.Tensor:
        """Inverse of :meth:`normalize`."""
        return x * self.scale + self.offset

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """:meth:`normalize`."""
        return self.normalize(x)
