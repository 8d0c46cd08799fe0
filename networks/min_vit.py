"""A small vision transformer with a convolutional stem (MinVit)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from networks.conv import Conv2d
from networks.mlp import Linear

# pixels from which each stem makes a patch
LEAST_SIZE = {"embed1": 8, "embed2": 16}


class PatchEmbed1(nn.Module):
    """One 8 x 8 convolution with stride 8: [B, C, 96, 96] -> [B, 144, dim]."""

    def __init__(self, in_channels: int, embed_dim: int, image_size: int) -> None:
        super().__init__()
        self.conv = Conv2d(in_channels, embed_dim, kernel_size=8, stride=8)
        self.num_patch = (image_size // 8) ** 2

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, C, S, S] -> [B, num_patch, dim]."""
        return self.conv(x).flatten(2).transpose(1, 2)


class PatchEmbed2(nn.Module):
    """Two overlapping convolutions: [B, C, 96, 96] -> [B, 121, dim]."""

    def __init__(self, in_channels: int, embed_dim: int, image_size: int, use_norm: bool) -> None:
        super().__init__()
        # always four entries, so that official keys (embed.0, embed.1, embed.3) match
        self.embed = nn.Sequential(
            Conv2d(in_channels, embed_dim, kernel_size=8, stride=4),
            nn.GroupNorm(embed_dim, embed_dim) if use_norm else nn.Identity(),
            nn.ReLU(inplace=True),
            Conv2d(embed_dim, embed_dim, kernel_size=3, stride=2),
        )
        side = ((image_size - 8) // 4 + 1 - 3) // 2 + 1
        self.num_patch = side**2

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, C, S, S] -> [B, num_patch, dim]."""
        return self.embed(x).flatten(2).transpose(1, 2)


class MultiHeadAttention(nn.Module):
    """Self attention; qkv is packed as (3, heads, head_dim) along the last axis."""

    def __init__(self, embed_dim: int, num_head: int) -> None:
        super().__init__()
        self.num_head = num_head
        self.qkv_proj = Linear(embed_dim, 3 * embed_dim)
        self.out_proj = Linear(embed_dim, embed_dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, T, dim] -> [B, T, dim]."""
        b, t, d = x.shape
        qkv = self.qkv_proj(x).view(b, t, 3, self.num_head, d // self.num_head)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # each [B, heads, T, head_dim]
        h = F.scaled_dot_product_attention(q, k, v)
        return self.out_proj(h.transpose(1, 2).reshape(b, t, d))


class TransformerLayer(nn.Module):
    """Pre-norm block: attention, then an exact-GELU MLP of 4x width."""

    def __init__(self, embed_dim: int, num_head: int) -> None:
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(embed_dim)
        self.mha = MultiHeadAttention(embed_dim, num_head)
        self.layer_norm2 = nn.LayerNorm(embed_dim)
        self.linear1 = Linear(embed_dim, 4 * embed_dim)
        self.linear2 = Linear(4 * embed_dim, embed_dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, T, dim] -> [B, T, dim]."""
        x = x + self.mha(self.layer_norm1(x))
        return x + self.linear2(F.gelu(self.linear1(self.layer_norm2(x))))


def _init_weights(m: nn.Module) -> None:
    if isinstance(m, nn.Linear):
        nn.init.trunc_normal_(m.weight, std=0.02)
        nn.init.zeros_(m.bias)


class MinVit(nn.Module):
    """[B, C, S, S] float, scaled to about [-0.5, 0.5] -> patches [B, num_patches, embed_dim].

    The released models are for 96 x 96 x 3; other sizes and channels get their own pos_embed.
    """

    def __init__(
        self,
        embed_style: str,
        embed_dim: int,
        embed_norm: int,
        num_head: int,
        depth: int,
        in_channels: int = 3,
        image_size: int = 96,
    ) -> None:
        super().__init__()
        self.patch_embed: PatchEmbed1 | PatchEmbed2
        if embed_style == "embed1":
            self.patch_embed = PatchEmbed1(in_channels, embed_dim, image_size)
        else:
            self.patch_embed = PatchEmbed2(in_channels, embed_dim, image_size, bool(embed_norm))
        self.num_patches = self.patch_embed.num_patch
        self.pos_embed = nn.Parameter(torch.zeros(1, self.num_patches, embed_dim))
        self.net = nn.Sequential(*[TransformerLayer(embed_dim, num_head) for _ in range(depth)])
        self.norm = nn.LayerNorm(embed_dim)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        self.apply(_init_weights)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, C, S, S] -> [B, num_patches, embed_dim]."""
        return self.norm(self.net(self.patch_embed(x) + self.pos_embed))
