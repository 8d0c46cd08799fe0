"""The spatial embedding: learned pooling of the rows of a feature map (the paper's appendix)."""

from __future__ import annotations

import torch
from torch import nn

from networks import fast
from networks.dropout import RowDropout
from networks.mlp import MLP, Linear


def spatial_embed(
    shared: torch.Tensor, own: torch.Tensor, norm: nn.LayerNorm, weight: torch.Tensor
) -> torch.Tensor:
    """sum over rows of relu(norm(shared + own)) * weight, for each of N candidates.

    shared [B, rows, emb] (the candidates' common part), own [B, N, emb],
    weight [1, rows, emb] -> [B, N, emb]. In one line of torch, with a tensor [B, N, rows, emb]
    in between: (relu(norm(shared[:, None] + own[:, :, None])) * weight[:, None]).sum(2)
    """
    return fast.spatial_embed(shared, own, norm, weight)


class SpatialEmb(nn.Module):
    """Learned pooling of patches: per channel a projection over patches, then a weighted sum.

    feat [B, patches, dim], prop [B, P] or None -> [B, emb].
    """

    def __init__(
        self, num_patch: int, patch_dim: int, prop_dim: int, emb_dim: int, dropout: float
    ) -> None:
        super().__init__()
        self.prop_dim = prop_dim
        self.input_proj = MLP(
            Linear(num_patch + prop_dim, emb_dim), nn.LayerNorm(emb_dim), nn.ReLU()
        )
        self.weight = nn.Parameter(torch.randn(1, patch_dim, emb_dim))
        self.dropout = RowDropout(dropout)

    def forward(self, feat: torch.Tensor, prop: torch.Tensor | None = None) -> torch.Tensor:
        """[B, patches, dim] (and [B, P]) -> [B, emb]."""
        proj, norm = self.input_proj[0], self.input_proj[1]
        assert isinstance(proj, Linear) and isinstance(norm, nn.LayerNorm)
        num_patch = feat.size(1)
        shared = proj.part(feat.transpose(1, 2), 0)
        own = proj.bias.expand(feat.size(0), -1)  # the part that all rows have in common
        if self.prop_dim > 0:
            assert prop is not None  # the owner checks its observation dict
            own = proj.part(prop, num_patch, proj.bias)
        z = spatial_embed(shared, own.unsqueeze(1), norm, self.weight).squeeze(1)
        return self.dropout(z)
