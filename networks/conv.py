"""Convolutions; ``networks.fast`` chooses the back end."""

from __future__ import annotations

import torch
from torch import nn

from networks import fast


class Conv2d(nn.Conv2d):
    """nn.Conv2d for square kernels, with padding by zeros, one group and no dilation."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        padding: int = 0,
        bias: bool = True,
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, bias=bias)
        self.step, self.margin = (stride, stride), (padding, padding)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, C, H, W] -> [B, out, h, w]."""
        return fast.conv2d(x, self.weight, self.bias, self.step, self.margin)
