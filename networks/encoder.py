"""Image encoders: uint8 images in, a grid of features out.

All of them take ``obs`` [B, C, H, W] with values 0..255 (uint8, or float not yet scaled) and
offer ``repr_dim`` = num_patch * patch_repr_dim. ``forward(obs, flatten=True)`` gives
[B, repr_dim] (channel-major for the convolutional ones, as in the original), ``flatten=False``
gives [B, num_patch, patch_repr_dim].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import nn

from common_utils.config_types import Flag
from common_utils.ibrl_utils import orth_weight_init, resize_images
from common_utils.ranges import Between, Layers, Or, Width
from networks.conv import Conv2d
from networks.min_vit import LEAST_SIZE, MinVit
from networks.precision import Precision, encoding
from networks.resnet import ResNet, check_norm
from networks.resnet_rl import ResNet96


@dataclass
class VitEncoderConfig:
    """Vision transformer."""

    # unused, kept so that the original's configs load
    patch_size: Annotated[int, Between(1, 256)] = 8
    # number of transformer blocks
    depth: Layers = 3
    # width of a patch feature
    embed_dim: Width = 128
    # attention heads
    num_heads: Annotated[int, Between(1, 256)] = 4
    # unused, kept so that the original's configs load
    stride: Annotated[int, Between(1, 256), Or(-1)] = -1
    # stem: embed1 (one convolution, 144 patches) or embed2 (two, 121 patches)
    embed_style: Literal["embed1", "embed2"] = "embed1"
    # 1: per-channel GroupNorm in the embed2 stem
    embed_norm: Flag = 0

    def __post_init__(self) -> None:
        if self.embed_dim % self.num_heads:
            raise ValueError(
                f"embed_dim: {self.embed_dim}, expected a multiple of num_heads {self.num_heads}"
            )


@dataclass
class ResNetEncoderConfig:
    """ResNet-18 style encoder."""

    # first layers: default (k4 s2 conv + max pool), patch (k4 s4) or convl (k6 s4)
    stem: Literal["default", "patch", "convl"] = "default"
    # shortcut when the size changes: default (1x1 stride 2), conv (2x2 stride 2) or pool
    downsample: Literal["default", "conv", "pool"] = "default"
    # bn, gnn (GroupNorm, one group per channel) or gnK (see group_norm_k_fixed)
    norm_layer: str = "gnn"
    # 1: one block per stage instead of two
    shallow: Flag = 0
    # 0: gnK means gnn, as in the original; 1: gnK really makes K groups
    group_norm_k_fixed: Flag = 0

    def __post_init__(self) -> None:
        check_norm(self.norm_layer, bool(self.group_norm_k_fixed))


@dataclass
class ResNet96EncoderConfig:
    """Thin pre-activation ResNet."""

    # 1: expand to 4x channels and come back with a 1x1 convolution
    use_1x1: Flag = 0
    # 1: one convolution per block (use_1x1 then has no effect)
    shallow: Flag = 0


class SmallImageError(ValueError):
    """Images are too small for an encoder; the message has their size and the smallest one."""

    def __init__(self, obs_shape: Sequence[int], least: int) -> None:
        height, width = obs_shape[1:]
        super().__init__(f"{height} x {width}, expected at least {least} x {least}")


def scale_image(obs: torch.Tensor, channels_last: bool = False) -> torch.Tensor:
    """0..255 -> [-0.5, 0.5] float.

    Float images on the CPU are checked not to be scaled already (ValueError when their maximum
    is 5 or less); uint8 needs no check, and on a GPU a check would stall the queue.
    channels_last: use this memory layout for the result, on the CPU.
    """
    layout = torch.contiguous_format
    if channels_last and obs.device.type == "cpu":
        layout = torch.channels_last
    if not obs.is_floating_point():
        return obs.to(torch.float32, memory_format=layout).div_(255.0).sub_(0.5)
    if obs.device.type == "cpu" and obs.numel() and float(obs.detach().max()) <= 5:
        raise ValueError(
            f"images must be 0..255, but the maximum of this float batch is "
            f"{float(obs.detach().max()):.3f}: was it scaled already?"
        )
    return (obs / 255.0 - 0.5).contiguous(memory_format=layout)


LARGEST_LEAST = 256  # no encoder needs larger images


class _ConvEncoder(nn.Module):
    """Base of the convolutional encoders; subclasses provide :meth:`features`."""

    repr_dim: int
    num_patch: int
    patch_repr_dim: int
    precision: Precision = "float32"
    # A quarter faster for plain convolutions on the CPU, but slower with GroupNorm between them.
    channels_last = False

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """Scaled images [B, C, H, W] -> [B, dim, h, w]."""
        raise NotImplementedError

    @torch.no_grad()
    def _measure(self, obs_shape: Sequence[int]) -> None:
        """Find the output size with one dry run (eval mode: no running statistics move).

        Raises SmallImageError if nothing is left of an image to be normalised.
        """
        if len(obs_shape) != 3:
            raise ValueError(f"image observations are [C, H, W], got {tuple(obs_shape)}")
        self.eval()
        out = self._try_size(obs_shape)
        if out is None:
            sizes = range(1, LARGEST_LEAST)
            least = next(s for s in sizes if self._try_size((obs_shape[0], s, s)) is not None)
            raise SmallImageError(obs_shape, least)
        self.train()
        self.patch_repr_dim = out.size(1)
        self.num_patch = out.size(2) * out.size(3)
        self.repr_dim = self.num_patch * self.patch_repr_dim

    def _try_size(self, obs_shape: Sequence[int]) -> torch.Tensor | None:
        try:
            out = self.features(torch.zeros(1, *obs_shape))
        except (RuntimeError, ValueError):  # a kernel larger than its input, a norm of one value
            return None
        return out if out.numel() else None

    def forward(self, obs: torch.Tensor, flatten: bool = True) -> torch.Tensor:
        """[B, C, H, W] in 0..255 -> [B, repr_dim], or [B, num_patch, patch_repr_dim]."""
        with encoding(self.precision, obs.device):
            h = self.features(scale_image(obs, self.channels_last)).flatten(2)
        h = h.float()
        return h.flatten(1) if flatten else h.transpose(1, 2)


class VitEncoder(nn.Module):
    """MinVit on images; also flattens patch-major."""

    precision: Precision = "float32"

    def __init__(self, obs_shape: Sequence[int], cfg: VitEncoderConfig | None = None) -> None:
        super().__init__()
        self.cfg = cfg = cfg if cfg is not None else VitEncoderConfig()
        if len(obs_shape) != 3 or obs_shape[1] != obs_shape[2]:
            raise ValueError(
                f"enc_type: vit, expected another one for images {tuple(obs_shape)}, not square"
            )
        least = LEAST_SIZE[cfg.embed_style]
        if obs_shape[1] < least:
            raise SmallImageError(obs_shape, least)
        self.vit = MinVit(
            embed_style=cfg.embed_style,
            embed_dim=cfg.embed_dim,
            embed_norm=cfg.embed_norm,
            num_head=cfg.num_heads,
            depth=cfg.depth,
            in_channels=obs_shape[0],
            image_size=obs_shape[1],
        )
        self.num_patch = self.vit.num_patches
        self.patch_repr_dim = cfg.embed_dim
        self.repr_dim = self.num_patch * self.patch_repr_dim

    def forward(self, obs: torch.Tensor, flatten: bool = True) -> torch.Tensor:
        """[B, C, S, S] in 0..255 -> [B, repr_dim], or [B, num_patch, embed_dim]."""
        with encoding(self.precision, obs.device):
            h = self.vit(scale_image(obs, channels_last=True))
        h = h.float()
        return h.flatten(1) if flatten else h


def set_precision(module: nn.Module, precision: Precision) -> int:
    """How precisely the image encoders in ``module`` compute; returns how many it has."""
    encoders = [m for m in module.modules() if isinstance(m, (_ConvEncoder, VitEncoder))]
    for encoder in encoders:
        encoder.precision = precision
    return len(encoders)


class ResNetEncoder(_ConvEncoder):
    """ResNet-18 style: 96 x 96 -> 9 patches of 512."""

    def __init__(self, obs_shape: Sequence[int], cfg: ResNetEncoderConfig | None = None) -> None:
        super().__init__()
        self.cfg = cfg = cfg if cfg is not None else ResNetEncoderConfig()
        self.nets = ResNet(
            obs_shape[0],
            stem=cfg.stem,
            downsample=cfg.downsample,
            norm_layer=cfg.norm_layer,
            shallow=cfg.shallow,
            group_norm_k_fixed=cfg.group_norm_k_fixed,
        )
        self._measure(obs_shape)

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """[B, C, H, W] -> [B, 512, h, w]."""
        return self.nets(x)


class ResNet96Encoder(_ConvEncoder):
    """Thin pre-activation ResNet: 96 x 96 -> 144 patches of 256."""

    def __init__(self, obs_shape: Sequence[int], cfg: ResNet96EncoderConfig | None = None) -> None:
        super().__init__()
        self.cfg = cfg = cfg if cfg is not None else ResNet96EncoderConfig()
        self.resnet = ResNet96(obs_shape[0], cfg.use_1x1, cfg.shallow)
        self._measure(obs_shape)

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """[B, C, H, W] -> [B, 256, h, w]."""
        return self.resnet(x)


class DrQEncoder(_ConvEncoder):
    """Four 3 x 3 convolutions on 84 x 84 images (others are resized): 1225 patches of 32."""

    IMAGE_SIZE = 84
    channels_last = True

    def __init__(self, obs_shape: Sequence[int]) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for i in range(4):
            c_in, stride = (obs_shape[0], 2) if i == 0 else (32, 1)
            layers += [Conv2d(c_in, 32, kernel_size=3, stride=stride), nn.ReLU(inplace=True)]
        self.convnet = nn.Sequential(*layers)
        self.apply(orth_weight_init)
        self._measure(obs_shape)

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """[B, C, H, W] -> [B, 32, 35, 35]."""
        return self.convnet(resize_images(x, self.IMAGE_SIZE))
