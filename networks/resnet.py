"""ResNet-18 style trunk without the classifier, with small stems for 96 x 96 images."""

from __future__ import annotations

import re
from collections.abc import Callable

import torch
from torch import nn

from networks import fast
from networks.conv import Conv2d

MIN_CHANNELS = 64  # of any layer that is normalised
NormFn = Callable[[int], nn.Module]


def check_norm(norm_layer: str, group_norm_k_fixed: bool) -> None:
    """ValueError unless :func:`make_norm` knows ``norm_layer``."""
    if norm_layer in ("bn", "gnn"):
        return
    match = re.fullmatch(r"gn([1-9][0-9]{0,3})", norm_layer)
    if match is None:
        raise ValueError(f"norm_layer: '{norm_layer}', expected bn, gnn or gn<groups>")
    if group_norm_k_fixed and MIN_CHANNELS % int(match[1]):
        raise ValueError(
            f"norm_layer: '{norm_layer}', expected a number of groups that divides {MIN_CHANNELS}"
        )


def make_norm(norm_layer: str, group_norm_k_fixed: bool) -> NormFn:
    """channels -> norm module: "bn", "gnn" (one group per channel) or "gnK" (K groups).

    The original ignores K and always makes one group per channel; so does this, unless
    ``group_norm_k_fixed``. Raises ValueError for other names.
    """
    check_norm(norm_layer, group_norm_k_fixed)
    if norm_layer == "bn":
        return nn.BatchNorm2d
    if norm_layer != "gnn" and group_norm_k_fixed:
        groups = int(norm_layer[2:])
        return lambda channels: nn.GroupNorm(groups, channels)
    return lambda channels: nn.GroupNorm(channels, channels)


def _stem(kind: str, in_channels: int, norm: NormFn) -> nn.Sequential:
    if kind == "default":
        conv = Conv2d(in_channels, 64, kernel_size=4, stride=2, bias=False)
        pool = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)
        return nn.Sequential(conv, norm(64), nn.ReLU(inplace=True), pool)
    if kind == "patch":
        conv = Conv2d(in_channels, 64, kernel_size=4, stride=4, bias=False)
    else:  # convl
        conv = Conv2d(in_channels, 64, kernel_size=6, stride=4, padding=1, bias=False)
    return nn.Sequential(conv, norm(64), nn.ReLU(inplace=True))


def _shortcut(kind: str, c_in: int, c_out: int, stride: int, norm: NormFn) -> nn.Sequential:
    if kind == "default":
        conv = Conv2d(c_in, c_out, kernel_size=1, stride=stride, bias=False)
        return nn.Sequential(conv, norm(c_out))
    if kind == "conv":
        conv = Conv2d(c_in, c_out, kernel_size=stride, stride=stride, bias=False)
        return nn.Sequential(conv, norm(c_out))
    conv = Conv2d(c_in, c_out, kernel_size=1, bias=False)  # pool
    return nn.Sequential(nn.MaxPool2d(stride, stride), conv, norm(c_out))


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions and a shortcut."""

    def __init__(self, c_in: int, c_out: int, stride: int, downsample: str, norm: NormFn) -> None:
        super().__init__()
        self.conv1 = Conv2d(c_in, c_out, 3, stride=stride, padding=1, bias=False)
        self.bn1 = norm(c_out)
        self.conv2 = Conv2d(c_out, c_out, 3, padding=1, bias=False)
        self.bn2 = norm(c_out)
        changes = stride != 1 or c_in != c_out
        self.downsample = _shortcut(downsample, c_in, c_out, stride, norm) if changes else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, c_in, H, W] -> [B, c_out, H / stride, W / stride]."""
        shortcut = x
        if self.downsample is not None:
            *convs, norm = self.downsample
            for conv in convs:
                shortcut = conv(shortcut)
            shortcut = fast.channel_norm(shortcut, norm, relu=False)
        out = fast.channel_norm(self.conv1(x), self.bn1)
        return fast.channel_norm(self.conv2(out), self.bn2, shortcut)


class ResNet(nn.Module):
    """[B, C, H, W] float -> [B, 512, h, w] (3 x 3 for 96 x 96).

    shallow: one block per stage instead of two.
    """

    def __init__(
        self,
        in_channels: int,
        stem: str,
        downsample: str,
        norm_layer: str,
        shallow: int,
        group_norm_k_fixed: int = 0,
    ) -> None:
        super().__init__()
        norm = make_norm(norm_layer, bool(group_norm_k_fixed))
        blocks = 1 if shallow else 2

        def stage(c_in: int, c_out: int, stride: int) -> nn.Sequential:
            first = BasicBlock(c_in, c_out, stride, downsample, norm)
            rest = [BasicBlock(c_out, c_out, 1, downsample, norm) for _ in range(blocks - 1)]
            return nn.Sequential(first, *rest)

        self.init_downsample = _stem(stem, in_channels, norm)
        self.layer1 = stage(64, 64, 1)
        self.layer2 = stage(64, 128, 2)
        self.layer3 = stage(128, 256, 2)
        self.layer4 = stage(256, 512, 2)
        for m in self.modules():
            if isinstance(m, nn.Conv2d):
                nn.init.kaiming_normal_(m.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, C, H, W] -> [B, 512, h, w]."""
        conv, norm, _relu, *pool = self.init_downsample
        x = fast.channel_norm(conv(x), norm)
        for module in pool:
            x = module(x)
        return self.layer4(self.layer3(self.layer2(self.layer1(x))))
