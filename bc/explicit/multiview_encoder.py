"""One ResNet per camera, compressed and joined into a single feature."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import nn

from common_utils.ranges import Dropout, Width
from common_utils.specs import Obs
from networks.dropout import RowDropout
from networks.encoder import ResNetEncoder, ResNetEncoderConfig


@dataclass
class MultiViewEncoderConfig:
    """ResNets over several cameras."""

    # how camera features are joined: cat, add or mult
    fuse_method: Literal["cat", "add", "mult"] = "cat"
    # the ResNet of each camera
    resnet: ResNetEncoderConfig = field(default_factory=ResNetEncoderConfig)
    # width of one camera's compressed feature
    feat_dim: Width = 512
    # dropout probability in the compression
    dropout: Dropout = 0


class MultiViewEncoder(nn.Module):
    """{camera: [B, horizon * C, H, W], "prop": [B, P]} -> [B, repr_dim].

    Each of the ``obs_horizon`` frames passes through the camera's ResNet separately; frames of a
    camera are concatenated, cameras joined by ``fuse_method``, "prop" appended with use_prop.
    """

    def __init__(
        self,
        obs_shape: Sequence[int],
        obs_horizon: int,
        prop_shape: Sequence[int],
        rl_cameras: Sequence[str],
        use_prop: int,
        cfg: MultiViewEncoderConfig | None = None,
    ) -> None:
        super().__init__()
        self.cfg = cfg = cfg if cfg is not None else MultiViewEncoderConfig()
        if not rl_cameras:
            raise ValueError("MultiViewEncoder needs at least one camera")
        self.obs_horizon, self.use_prop = obs_horizon, bool(use_prop)
        self.rl_cameras = tuple(rl_cameras)
        encoders = [ResNetEncoder(obs_shape, cfg.resnet) for _ in rl_cameras]
        self.encoders = nn.ModuleList(encoders)
        self.compress_streams = nn.ModuleList(
            nn.Sequential(
                nn.Linear(encoder.repr_dim, cfg.feat_dim),
                nn.LayerNorm(cfg.feat_dim),
                RowDropout(cfg.dropout),
                nn.ReLU(),
            )
            for encoder in encoders
        )
        self.repr_dim = cfg.feat_dim * obs_horizon
        if cfg.fuse_method == "cat":
            self.repr_dim *= len(self.rl_cameras)
        if self.use_prop:
            self.repr_dim += prop_shape[0]

    def _stream(self, i: int, obs: torch.Tensor) -> torch.Tensor:
        b, frames = obs.size(0), self.obs_horizon
        obs = obs.reshape(b * frames, obs.size(1) // frames, *obs.shape[2:])
        return self.compress_streams[i](self.encoders[i](obs)).reshape(b, -1)

    def forward(self, obs: Obs) -> torch.Tensor:
        """Batched observations -> [B, repr_dim]."""
        feats = [self._stream(i, obs[camera]) for i, camera in enumerate(self.rl_cameras)]
        if self.cfg.fuse_method == "cat":
            h = torch.cat(feats, dim=-1)
        elif self.cfg.fuse_method == "add":
            h = torch.stack(feats).sum(0)
        else:
            h = torch.stack(feats).prod(0)
        return torch.cat([h, obs["prop"]], dim=-1) if self.use_prop else h
