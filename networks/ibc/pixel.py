"""Networks of Implicit Behavioral Cloning over images (Florence et al., CoRL 2021, appendix).

:class:`PixelEBM` encodes the images once and scores many actions against the code ("late
fusion"); :class:`ConvMLPMSE` and :class:`ConvMLPMDN` are the explicit policies, and
:class:`ImageCode` is the code alone. Each takes ``images`` [B, T, C, H, W], **oldest frame
first**, uint8 0..255 or float32 0..1, and resizes and normalises them itself (:class:`FrameStack`).
conv_maxpool runs channels-last: on a CPU this is twice as fast as channels-first when encoding, and
1.4 times as fast in a training step.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from torch import nn

from common_utils.config_types import Flag
from common_utils.ranges import Between, MultipleOf
from networks.ibc.energy_net import EnergyNet
from networks.ibc.mlp import (
    Dense,
    MDNConfig,
    MDNHead,
    MLPConfig,
    Trunk,
    check_last_dim,
    make_dense,
)
from networks.mixture import GaussianMixture

StackOrder = Literal["scrambled", "channels"]


@dataclass
class ImageConfig:
    """How the camera's frames are prepared, and the encoder's arithmetic."""

    # rows that the frames are resized to
    target_height: Annotated[int, Between(1, 2048)] = 180
    # columns that the frames are resized to
    target_width: Annotated[int, Between(1, 2048)] = 240
    # how T frames become one image. scrambled: the original's reshape of [T, H, W, C] memory to
    # [H, W, T * C], which lays the frames one above the other with interleaved rows; channels:
    # frame t is channels t * C .. t * C + C - 1
    stack_order: StackOrder = "scrambled"
    # arithmetic of the convolutions; weights and the code stay float32
    conv_precision: Literal["float32", "bfloat16"] = "float32"


@dataclass
class EncoderConfig:
    """How the frames are prepared, and the image encoder."""

    image: ImageConfig = field(default_factory=ImageConfig)
    # image encoder: conv_maxpool (256 features) or spatial_attention (2 * num_heads)
    encoder: Literal["conv_maxpool", "spatial_attention"] = "conv_maxpool"
    # spatial_attention: channels of the residual blocks
    filters: Annotated[int, Between(4, 4096), MultipleOf(4)] = 64
    # spatial_attention: residual blocks
    num_blocks: Annotated[int, Between(0, 256)] = 8
    # spatial_attention: keypoints
    num_heads: Annotated[int, Between(1, 4096)] = 64

    def __post_init__(self) -> None:
        height, width = self.image.target_height, self.image.target_width
        least = ENCODERS[self.encoder].min_size
        if min(height, width) < least:
            raise ValueError(
                f"image.target_height: {height} and image.target_width {width}, expected at least "
                f"{least} each with {self.encoder}"
            )


@dataclass
class PixelEBMConfig(EncoderConfig):
    """Energy network over images."""

    # width of the value network (DenseResnetValue)
    value_width: Annotated[int, Between(4, 16384), MultipleOf(4)] = 512
    # residual blocks of the value network
    value_blocks: Annotated[int, Between(0, 256)] = 2


@dataclass
class ConvMLPConfig(EncoderConfig, MLPConfig):
    """Explicit regression over images: an encoder and a trunk."""

    # 1: append each pixel's (row, column) in [-1, 1] to the image (spatial_attention always does)
    coord_conv: Flag = 1

    def __post_init__(self) -> None:
        EncoderConfig.__post_init__(self)
        MLPConfig.__post_init__(self)


@dataclass
class ConvMDNConfig(EncoderConfig, MDNConfig):
    """Mixture density network over images: an encoder, a trunk and its mixture."""

    # 1: append each pixel's (row, column) in [-1, 1] to the image (spatial_attention always does)
    coord_conv: Flag = 1

    def __post_init__(self) -> None:
        EncoderConfig.__post_init__(self)
        MDNConfig.__post_init__(self)


def stack_frames(images: torch.Tensor, order: StackOrder) -> torch.Tensor:
    """[B, T, C, H, W] -> one image [B, T * C, H, W] in channels-last memory.

    It joins the given frames, oldest first as published; ``common_utils.stacking`` decides which
    frames these are. In both orders channel k holds colour k % C. Raises ValueError for an
    unknown order.
    """
    batch, frames, colours, height, width = images.shape
    if order == "scrambled":
        pixels = images.permute(0, 1, 3, 4, 2)
    elif order == "channels":
        pixels = images.permute(0, 3, 4, 1, 2)
    else:
        raise ValueError(f"stack_order is {order!r}, must be 'scrambled' or 'channels'")
    image = pixels.reshape(batch, height, width, frames * colours)
    return image.contiguous().permute(0, 3, 1, 2)


class FrameStack(nn.Module):
    """[B, T, C, H, W] -> float32 [B, T * C, target_height, target_width].

    uint8 becomes 0..1; the frames are stacked, resized bilinearly without anti-aliasing
    (half-pixel centres) and normalised per colour with the buffers ``mean`` and ``std`` [C] (of
    0..1 values; 0 and 1 until they are set). Normalising comes last because it commutes
    with the rest and there are fewer pixels left.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, num_frames: int, channels: int, cfg: ImageConfig) -> None:
        super().__init__()
        self.num_frames, self.channels, self.cfg = num_frames, channels, cfg
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("std", torch.ones(channels))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        expected = (self.num_frames, self.channels)
        if images.dim() != 5 or images.shape[1:3] != expected:
            raise ValueError(f"images must be [B, {expected}, H, W], got {list(images.shape)}")
        cfg, size = self.cfg, (self.cfg.target_height, self.cfg.target_width)
        x = stack_frames(images, cfg.stack_order).float()
        if x.shape[-2:] != size:
            x = F.interpolate(x, size, mode="bilinear", align_corners=False)
        # one fused multiply-add for the scale to 0..1 and the normaliser
        scale = 1 / (self.std * (255.0 if images.dtype == torch.uint8 else 1.0))
        scale, offset = (
            v.repeat(self.num_frames).view(1, -1, 1, 1) for v in (scale, -self.mean / self.std)
        )
        return torch.addcmul(offset, x, scale)


class CoordConv(nn.Module):
    """Append two channels: each pixel's row and column in [-1, 1]. [B, C, H, W] -> C + 2."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, _, height, width = x.shape
        rows = torch.linspace(-1, 1, height, device=x.device, dtype=x.dtype)
        columns = torch.linspace(-1, 1, width, device=x.device, dtype=x.dtype)
        grid = torch.stack(torch.meshgrid(rows, columns, indexing="ij"), dim=-1)
        pixels = [x.permute(0, 2, 3, 1), grid.expand(batch, -1, -1, -1)]
        return torch.cat(pixels, dim=-1).permute(0, 3, 1, 2)  # channels-last memory


class Conv(nn.Conv2d):
    """A same-size convolution, initialised as in Keras: Glorot uniform kernel, zero bias."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int = 3) -> None:
        super().__init__(in_channels, out_channels, kernel_size, padding=kernel_size // 2)
        self.to(memory_format=torch.channels_last)

    def reset_parameters(self) -> None:
        nn.init.xavier_uniform_(self.weight)
        assert self.bias is not None
        nn.init.zeros_(self.bias)


class ConvMaxpoolEncoder(nn.Module):
    """Convolution, relu and 2x2 max pooling, four times; then the mean over pixels.

    float32 [B, C, H, W] -> [B, 256]; H and W at least 16. ValueError for smaller images.
    """

    min_size = 16
    adds_coords = False
    widths = (32, 64, 128, 256)
    out_dim = 256

    def __init__(self, in_channels: int) -> None:
        super().__init__()
        inputs = (in_channels, *self.widths[:-1])
        for i, (cin, cout) in enumerate(zip(inputs, self.widths, strict=True), start=1):
            self.add_module(f"conv{i}", Conv(cin, cout))

    @classmethod
    def build(cls, in_channels: int, cfg: EncoderConfig) -> ConvMaxpoolEncoder:
        """It has no options."""
        return cls(in_channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if min(x.shape[-2:]) < self.min_size:
            raise ValueError(f"conv_maxpool needs images of at least 16x16, got {list(x.shape)}")
        for conv in self.children():
            # pooling first gives the same values and gradients, on a quarter of the pixels
            x = F.relu(F.max_pool2d(conv(x), 2))
        return x.to(torch.promote_types(x.dtype, torch.float32)).mean((2, 3))


class SpatialSoftmax(nn.Module):
    """Expected (row, column) under a softmax over the pixels of each channel.

    float32 [B, K, H, W] -> [B, 2K] as (row, column) pairs in [-1, 1]; the temperature is trained.
    """

    def __init__(self, temperature: float = 1.0) -> None:
        super().__init__()
        if temperature <= 0:
            raise ValueError(f"temperature must be above 0, got {temperature}")
        self.temperature = nn.Parameter(torch.tensor(float(temperature)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        height, width = x.shape[-2:]
        attention = (x.flatten(2) / self.temperature).softmax(-1).view(x.shape)
        rows = torch.linspace(-1, 1, height, device=x.device, dtype=x.dtype)
        columns = torch.linspace(-1, 1, width, device=x.device, dtype=x.dtype)
        row = (attention.sum(3) * rows).sum(-1)
        column = (attention.sum(2) * columns).sum(-1)
        return torch.stack([row, column], dim=-1).flatten(1)


class BottleneckBlock(nn.Module):
    """x + 1x1(relu(3x3(relu(1x1(relu(x)))))), a quarter of the channels inside."""

    def __init__(self, filters: int) -> None:
        super().__init__()
        inner = filters // 4
        self.conv0 = Conv(filters, inner, 1)
        self.conv1 = Conv(inner, inner, 3)
        self.conv2 = Conv(inner, filters, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv0(F.relu(x))
        y = self.conv1(F.relu(y))
        return x + self.conv2(F.relu(y))


class SpatialAttentionEncoder(nn.Module):
    """Keypoints of residual features: float32 [B, C, H, W] -> [B, 2 * num_heads]."""

    min_size = 1
    adds_coords = True

    def __init__(self, in_channels: int, filters: int, num_blocks: int = 8, num_heads: int = 64):
        super().__init__()
        self.coords = CoordConv()
        self.conv0 = Conv(in_channels + 2, filters)
        self.blocks = nn.ModuleList(BottleneckBlock(filters) for _ in range(num_blocks))
        self.conv1 = Conv(filters, num_heads, 1)
        self.softmax = SpatialSoftmax()
        self.out_dim = 2 * num_heads
        # unlike conv_maxpool, faster channels-first: most of its convolutions are 1x1
        self.to(memory_format=torch.contiguous_format)

    @classmethod
    def build(cls, in_channels: int, cfg: EncoderConfig) -> SpatialAttentionEncoder:
        """With the configured sizes."""
        return cls(in_channels, cfg.filters, cfg.num_blocks, cfg.num_heads)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv0(self.coords(x).contiguous())
        for block in self.blocks:
            x = block(x)
        return self.softmax(self.conv1(x).float())


class ValueBlock(nn.Module):
    """x + dense(relu(dense(relu(dense(relu(x)))))), a quarter of the width inside."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.dense0 = Dense(width, width // 4)
        self.dense1 = Dense(width // 4, width // 4)
        self.dense2 = Dense(width // 4, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.dense2(F.relu(self.dense1(F.relu(self.dense0(F.relu(x))))))


class DenseResnetValue(nn.Module):
    """A residual value network, [..., in_dim] -> [..., 1]. ``width`` is a multiple of 4."""

    def __init__(self, in_dim: int, width: int = 512, num_blocks: int = 2) -> None:
        super().__init__()
        self.dense0 = Dense(in_dim, width)
        self.blocks = nn.ModuleList(ValueBlock(width) for _ in range(num_blocks))
        self.dense1 = Dense(width, 1)

    def rest(self, h: torch.Tensor) -> torch.Tensor:
        """Everything after the first layer, [..., width] -> [..., 1]."""
        for block in self.blocks:
            h = block(h)
        return self.dense1(h)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.rest(self.dense0(x))


def run_encoder(
    encoder: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor, cfg: ImageConfig
) -> torch.Tensor:
    """``encoder(x)`` with convolutions in the configured precision; the result is float32."""
    if cfg.conv_precision == "float32" or x.device.type == "meta":  # meta tensors have only shapes
        return encoder(x)
    with torch.autocast(x.device.type, dtype=torch.bfloat16):
        return encoder(x)


Encoder = ConvMaxpoolEncoder | SpatialAttentionEncoder

# by name: what has ``build``, ``min_size`` (rows and columns it needs), ``adds_coords`` (it appends
# each pixel's coordinates itself) and ``out_dim``
ENCODERS: dict[str, type[Encoder]] = {
    "conv_maxpool": ConvMaxpoolEncoder,
    "spatial_attention": SpatialAttentionEncoder,
}


def make_encoder(in_channels: int, cfg: EncoderConfig) -> Encoder:
    """The configured encoder."""
    return ENCODERS[cfg.encoder].build(in_channels, cfg)


class ImageCode(nn.Module):
    """Frames and an encoder: images [B, T, C, H, W] (see the module) -> code [B, ``out_dim``]."""

    def __init__(self, num_frames: int, cfg: EncoderConfig, channels: int = 3) -> None:
        super().__init__()
        self.image = cfg.image
        self.frames = FrameStack(num_frames, channels, cfg.image)
        self.encoder = make_encoder(num_frames * channels, cfg)
        self.out_dim = self.encoder.out_dim

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return run_encoder(self.encoder, self.frames(images), self.image)


class PixelEBM(EnergyNet):
    """f(images, a), minus the energy, with late fusion: the images are encoded once.

    ``images`` [B, T, C, H, W] (see the module), actions [B, N, A]. The code is concatenated with
    the action and goes through :class:`DenseResnetValue`, whose first layer is split so that the
    code's share is computed once as well.
    """

    def __init__(
        self, num_frames: int, action_dim: int, cfg: PixelEBMConfig, channels: int = 3
    ) -> None:
        super().__init__()
        self.action_dim, self.cfg = action_dim, cfg
        self.frames = FrameStack(num_frames, channels, cfg.image)
        self.encoder = make_encoder(num_frames * channels, cfg)
        width = self.encoder.out_dim + action_dim
        self.value = DenseResnetValue(width, cfg.value_width, cfg.value_blocks)

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """The images' code, [B, 256] (conv_maxpool) or [B, 2 * num_heads]."""
        return run_encoder(self.encoder, self.frames(images), self.cfg.image)

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        """The code's share of the value network's first layer, [B, value_width]."""
        first = self.value.dense0
        return F.linear(self.features(images), first.weight[:, : -self.action_dim], first.bias)

    def score(self, encoded: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
        """encoded [B, value_width] and actions [B, N, A] -> f [B, N]."""
        check_last_dim("actions", actions, self.action_dim, 3)
        share = F.linear(actions, self.value.dense0.weight[:, -self.action_dim :])
        return self.value.rest(encoded.unsqueeze(1) + share).squeeze(-1)


class ConvTrunk(nn.Module):
    """Frames, coordinates, an encoder and a trunk: [B, T, C, H, W] -> [B, width]."""

    def __init__(self, num_frames: int, channels: int, cfg: ConvMLPConfig | ConvMDNConfig) -> None:
        super().__init__()
        self.cfg = cfg
        self.frames = FrameStack(num_frames, channels, cfg.image)
        coords = bool(cfg.coord_conv) and not ENCODERS[cfg.encoder].adds_coords
        self.coords = CoordConv() if coords else nn.Identity()
        self.encoder = make_encoder(num_frames * channels + 2 * coords, cfg)
        self.trunk = Trunk(self.encoder.out_dim, cfg)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.coords(self.frames(images))
        return self.trunk(run_encoder(self.encoder, x, self.cfg.image))


class ConvMLPMSE(nn.Module):
    """Explicit regression: images [B, T, C, H, W] -> normalised action [B, A]."""

    def __init__(
        self, num_frames: int, action_dim: int, cfg: ConvMLPConfig, channels: int = 3
    ) -> None:
        super().__init__()
        self.net = ConvTrunk(num_frames, channels, cfg)
        self.out = make_dense(cfg.width, action_dim, cfg)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.out(self.net(images))


class ConvMLPMDN(nn.Module):
    """Mixture density network: images [B, T, C, H, W] -> mixture over normalised actions."""

    def __init__(
        self, num_frames: int, action_dim: int, cfg: ConvMDNConfig, channels: int = 3
    ) -> None:
        super().__init__()
        self.net = ConvTrunk(num_frames, channels, cfg)
        self.head = MDNHead(action_dim, cfg)

    def forward(self, images: torch.Tensor) -> GaussianMixture:
        return self.head(self.net(images))
