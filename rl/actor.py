"""Actors: observation dict in, a TruncatedNormal over actions in [-1, 1] out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, cast

import torch
from torch import nn

from common_utils.config_types import Flag
from common_utils.ibrl_utils import TruncatedNormal, clip_action_norm, orth_weight_init, require_key
from common_utils.ranges import Above, Between, Dropout, Layers, OneOf, Or, Width
from networks.dropout import RowDropout
from networks.mlp import MLP, Linear, build_fc
from networks.spatial import SpatialEmb
from rl.residual import BASE, begin_at_base, corrected


@dataclass
class ActorConfig:
    """Actor on encoder features."""

    # width of the compressed visual feature
    feature_dim: Width = 128
    # width of the two hidden layers
    hidden_dim: Width = 1024
    # dropout probability, in the compression and in the hidden layers
    dropout: Dropout = 0
    # 1: orthogonal initialisation
    orth: Flag = 1
    # above 0: limit on the norm of the first 6 action dimensions (7-dim actions only)
    max_action_norm: Annotated[float, Above(0), Or(-1, 0)] = -1
    # above 0: compress by a spatial embedding of this width instead of one Linear
    spatial_emb: Annotated[int, Between(0, 16384)] = 0


@dataclass
class FcActorConfig:
    """Actor on state vectors."""

    # number of hidden layers
    num_layer: Layers = 3
    # width of the hidden layers
    hidden_dim: Width = 512
    # dropout probability after each hidden layer
    dropout: Dropout = 0.5
    # LayerNorm: 0 none, 1 every hidden layer, 2 last hidden layer only
    layer_norm: Annotated[int, OneOf(0, 1, 2)] = 0
    # 1: orthogonal initialisation
    orth: Flag = 0


class Actor(nn.Module):
    """obs {"feat": [B, patches, dim], "prop": [B, P]} -> TruncatedNormal over [B, A].

    ``prop`` is read only when prop_dim > 0, and :data:`BASE` with ``residual`` above 0, which
    bounds the correction of it, or with ``noisy``: then it is noise, of which the action is made.
    """

    def __init__(
        self,
        repr_dim: int,
        patch_repr_dim: int,
        prop_dim: int,
        action_dim: int,
        cfg: ActorConfig | None = None,
        residual: float = 0.0,
        noisy: bool = False,
    ) -> None:
        super().__init__()
        self.cfg = cfg = cfg if cfg is not None else ActorConfig()
        self.prop_dim, self.residual = prop_dim, residual
        self.reads_base = residual > 0 or noisy
        if cfg.max_action_norm > 0 and action_dim != 7:
            raise ValueError(
                f"actor.max_action_norm: {cfg.max_action_norm}, expected -1 or 0 for actions of "
                f"{action_dim} dimensions: it applies to 6 of an arm and 1 of a gripper"
            )
        self.compress: nn.Module
        if cfg.spatial_emb > 0:
            feature_dim = cfg.spatial_emb
            self.compress = SpatialEmb(
                repr_dim // patch_repr_dim, patch_repr_dim, prop_dim, feature_dim, cfg.dropout
            )
        else:
            feature_dim = cfg.feature_dim
            self.compress = MLP(
                Linear(repr_dim, feature_dim),
                nn.LayerNorm(feature_dim),
                RowDropout(cfg.dropout),
                nn.ReLU(),
            )
        layers: list[nn.Module] = []
        base_dim = action_dim if self.reads_base else 0
        for in_dim in (feature_dim + prop_dim + base_dim, cfg.hidden_dim):
            layers += [
                Linear(in_dim, cfg.hidden_dim),
                nn.LayerNorm(cfg.hidden_dim),
                RowDropout(cfg.dropout),
                nn.ReLU(),
            ]
        self.policy = MLP(*layers, Linear(cfg.hidden_dim, action_dim), nn.Tanh())
        if cfg.orth:
            self.compress.apply(orth_weight_init)
            self.policy.apply(orth_weight_init)
        if residual:
            begin_at_base(cast(nn.Linear, self.policy[-2]))

    def forward(self, obs: dict[str, torch.Tensor], std: float) -> TruncatedNormal:
        """Distribution over actions [B, A] with standard deviation ``std``."""
        feat = require_key(obs, "feat", "Actor")
        prop = require_key(obs, "prop", "Actor (prop_dim > 0)") if self.prop_dim > 0 else None
        if isinstance(self.compress, SpatialEmb):
            z = self.compress(feat, prop)
        else:
            z = self.compress(feat.flatten(1))
        if prop is not None:
            z = torch.cat([z, prop], dim=-1)
        if self.reads_base:
            z = torch.cat([z, obs[BASE]], dim=-1)
        mean = corrected(self.policy(z), obs, self.residual)
        if self.cfg.max_action_norm > 0:
            mean = clip_action_norm(mean, self.cfg.max_action_norm)
        return TruncatedNormal(mean, std, self.cfg.max_action_norm)


class FcActor(nn.Module):
    """obs {"state": [B, S]} -> TruncatedNormal over [B, A]; the rest as in :class:`Actor`."""

    def __init__(
        self,
        obs_shape: Sequence[int],
        action_dim: int,
        cfg: FcActorConfig | None = None,
        residual: float = 0.0,
        noisy: bool = False,
    ) -> None:
        super().__init__()
        self.cfg = cfg = cfg if cfg is not None else FcActorConfig()
        self.residual = residual
        self.reads_base = residual > 0 or noisy
        if len(obs_shape) != 1:
            raise ValueError(f"FcActor needs a flat state, got obs_shape {tuple(obs_shape)}")
        in_dim = obs_shape[0] + (action_dim if self.reads_base else 0)
        self.net = build_fc(
            in_dim, cfg.hidden_dim, action_dim, cfg.num_layer, cfg.layer_norm, cfg.dropout
        )
        if cfg.orth:
            self.net.apply(orth_weight_init)
        if residual:
            begin_at_base(cast(nn.Linear, self.net[-2]))

    def forward(self, obs: dict[str, torch.Tensor], std: float) -> TruncatedNormal:
        """Distribution over actions [B, A] with standard deviation ``std``."""
        seen = require_key(obs, "state", "FcActor")
        if self.reads_base:
            seen = torch.cat([seen, obs[BASE]], dim=-1)
        return TruncatedNormal(corrected(self.net(seen), obs, self.residual), std)
