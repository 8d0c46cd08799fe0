"""ResNet96: a thin pre-activation ResNet for reinforcement learning on 96 x 96 images."""

from __future__ import annotations

import itertools

import torch
from torch import nn

from networks import fast
from networks.conv import Conv2d


class PreActBlock(nn.Module):
    """norm, ReLU, conv (stride 2), norm, ReLU, conv; the shortcut is a 1 x 1 conv, no norm.

    use_1x1 expands to 4 * c_in channels and comes back with a 1 x 1 convolution. shallow drops
    the second half; there is then nothing left to be 1 x 1, so use_1x1 has no effect.
    """

    def __init__(self, c_in: int, c_out: int, use_1x1: bool, shallow: bool) -> None:
        super().__init__()
        mid = 4 * c_in if use_1x1 and not shallow else c_out
        self.norm1 = nn.GroupNorm(c_in, c_in)
        self.conv1 = Conv2d(c_in, mid, 3, stride=2, padding=1, bias=False)
        self.shallow = shallow
        if not shallow:
            kernel = 1 if use_1x1 else 3
            self.norm2 = nn.GroupNorm(mid, mid)
            self.conv2 = Conv2d(mid, c_out, kernel, padding=kernel // 2, bias=False)
        self.x_path = Conv2d(c_in, c_out, 1, stride=2, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, c_in, H, W] -> [B, c_out, H / 2, W / 2]."""
        h = self.conv1(fast.channel_norm(x, self.norm1))
        if not self.shallow:
            h = self.conv2(fast.channel_norm(h, self.norm2))
        return h + self.x_path(x)


class ResNet96(nn.Module):
    """[B, C, 96, 96] float -> [B, 256, 12, 12]."""

    def __init__(self, in_channels: int, use_1x1: int, shallow: int) -> None:
        super().__init__()
        widths = [32, 64, 128, 256]
        blocks = [
            PreActBlock(c_in, c_out, bool(use_1x1), bool(shallow))
            for c_in, c_out in itertools.pairwise(widths)
        ]
        self.net = nn.Sequential(
            Conv2d(in_channels, 32, 3, padding=1, bias=False),
            *blocks,
            nn.GroupNorm(256, 256),
            nn.ReLU(),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, C, H, W] -> [B, 256, H / 8, W / 8]."""
        *modules, norm, _relu = self.net
        for module in modules:
            x = module(x)
        return fast.channel_norm(x, norm)
