"""Critics. Each scores N candidate actions per observation, by some or all of its members.

Both kinds share one interface: ``q(feats, actions [B, N, A], members) -> [B, N, M]``, ``min_q``,
``draw_members``. ``feats`` are the features that the matching head computes from observations
(``rl.heads``).

The part of a critic that sees only the observation is computed once and shared by all
candidates: the first Linear is applied by columns, W [o, a] = W_o o + W_a a.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, cast

import torch
from torch import nn

from common_utils.config_types import Flag
from common_utils.ibrl_utils import orth_weight_init
from common_utils.ranges import Between, Dropout, Layers, Width
from common_utils.specs import Obs
from networks.dropout import RowDropout
from networks.mlp import MLP, EnsembleMLP, Linear, _MultiLinear
from networks.optim import Adam
from networks.spatial import spatial_embed
from rl.value_bins import ValueBins, ValueBinsConfig, bins_of

# numbers of an ensemble's members, or an index int64 [M] on the critic's device, which the host
# never reads; None: all
Members = Sequence[int] | torch.Tensor | None


@dataclass
class CriticConfig:
    """Two Q heads on encoder features."""

    # width of the compressed visual feature (spatial_emb 0)
    feature_dim: Width = 128
    # width of the hidden layers
    hidden_dim: Width = 1024
    # 1: orthogonal initialisation
    orth: Flag = 1
    # dropout probability (spatial_emb 0 only)
    drop: Dropout = 0
    # spatial embedding over patches of each channel (1) or over channels of each patch (0)
    fuse_patch: Flag = 1
    # unused, kept so that the original's configs load
    norm_weight: Flag = 0
    # above 0: spatial embedding of this width instead of one Linear on the flat feature
    spatial_emb: Annotated[int, Between(0, 16384)] = 0


@dataclass
class MultiFcQConfig:
    """Ensemble of Q functions on state vectors."""

    # number of members
    num_q: Annotated[int, Between(1, 1024)] = 10
    # number of members, drawn at random, whose minimum is the target
    num_k: Annotated[int, Between(1, 1024)] = 2
    # number of hidden layers
    num_layer: Layers = 3
    # width of the hidden layers
    hidden_dim: Width = 512
    # dropout probability after each hidden layer
    dropout: Dropout = 0
    # 1: LayerNorm (shared by the members) in every hidden layer
    layer_norm: Flag = 0
    # 1: orthogonal initialisation of every member
    orth: Flag = 0
    # 1: feed the action to every layer, not only to the first
    append_action: Flag = 0
    # 0: one scalar bias per member and layer (the original); 1: one bias per unit. With
    # layer_norm 1 the scalar is cancelled by the LayerNorm, so 0 means no hidden bias at all
    bias_per_unit: Flag = 0

    def __post_init__(self) -> None:
        if self.num_k > self.num_q:
            raise ValueError(f"num_k: {self.num_k}, expected at most num_q {self.num_q}")


class _QNet(nn.Module):
    """Flat feature -> Linear -> MLP on [feature, action, prop]."""

    def __init__(
        self, repr_dim: int, prop_dim: int, action_dim: int, cfg: CriticConfig, outputs: int = 1
    ) -> None:
        super().__init__()
        self.feature_dim, self.action_dim = cfg.feature_dim, action_dim
        self.obs_proj = MLP(
            Linear(repr_dim, cfg.feature_dim),
            RowDropout(cfg.drop),
            nn.LayerNorm(cfg.feature_dim),
            nn.ReLU(),
        )
        layers: list[nn.Module] = []
        for in_dim in (cfg.feature_dim + action_dim + prop_dim, cfg.hidden_dim):
            layers += [
                Linear(in_dim, cfg.hidden_dim),
                RowDropout(cfg.drop),
                nn.LayerNorm(cfg.hidden_dim),
                nn.ReLU(),
            ]
        self.q = MLP(*layers, Linear(cfg.hidden_dim, outputs))
        if cfg.orth:
            self.apply(orth_weight_init)

    def forward(
        self, feat: torch.Tensor, prop: torch.Tensor | None, actions: torch.Tensor
    ) -> torch.Tensor:
        """feat [B, patches, dim], actions [B, N, A] -> [B, N, outputs]."""
        first = cast(Linear, self.q[0])
        h = self.obs_proj(feat.flatten(1))
        shared = first.part(h, 0) + first.bias
        if prop is not None:
            shared = shared + first.part(prop, self.feature_dim + self.action_dim)
        x = shared.unsqueeze(1) + first.part(actions, self.feature_dim)
        return self.q.after_first(x)


class SpatialEmbQNet(nn.Module):
    """Spatial embedding of (feature rows, action, prop) -> MLP on [z, prop, action]."""

    def __init__(
        self,
        num_patch: int,
        patch_dim: int,
        prop_dim: int,
        action_dim: int,
        cfg: CriticConfig,
        outputs: int = 1,
    ) -> None:
        super().__init__()
        self.fuse_patch = bool(cfg.fuse_patch)
        rows, self.row_dim = (patch_dim, num_patch) if self.fuse_patch else (num_patch, patch_dim)
        self.action_dim = action_dim
        emb = cfg.spatial_emb
        self.input_proj = MLP(
            Linear(self.row_dim + action_dim + prop_dim, emb), nn.LayerNorm(emb), nn.ReLU()
        )
        self.weight = nn.Parameter(torch.randn(1, rows, emb))
        self.q = MLP(
            Linear(emb + prop_dim + action_dim, cfg.hidden_dim),
            nn.LayerNorm(cfg.hidden_dim),
            nn.ReLU(),
            Linear(cfg.hidden_dim, cfg.hidden_dim),
            nn.LayerNorm(cfg.hidden_dim),
            nn.ReLU(),
            Linear(cfg.hidden_dim, outputs),
        )
        if cfg.orth:
            self.q.apply(orth_weight_init)

    def forward(
        self, feat: torch.Tensor, prop: torch.Tensor | None, actions: torch.Tensor
    ) -> torch.Tensor:
        """feat [B, patches, dim], actions [B, N, A] -> [B, N, outputs]."""
        proj = cast(Linear, self.input_proj[0])
        norm = cast(nn.LayerNorm, self.input_proj[1])
        rows = feat.transpose(1, 2) if self.fuse_patch else feat
        shared = proj.part(rows, 0)  # [B, rows, emb]
        per_action = proj.part(actions, self.row_dim) + proj.bias  # [B, N, emb]
        if prop is not None:
            per_action = per_action + proj.part(prop, self.row_dim + self.action_dim)[:, None]
        parts = [spatial_embed(shared, per_action, norm, self.weight)]
        if prop is not None:
            parts.append(prop.unsqueeze(1).expand(-1, actions.size(1), -1))
        return self.q(torch.cat([*parts, actions], dim=-1))


class Valuing(nn.Module, ABC):
    """What both kinds share: values of members' outputs, which are numbers or, with ``bins``,
    distributions over them."""

    bins: ValueBins | None

    @abstractmethod
    def outputs(self, feats: Obs, actions: torch.Tensor, members: Members = None) -> torch.Tensor:
        """actions [B, N, A] -> [B, N, M, 1 or bins], of the given members (None: all)."""

    def q(self, feats: Obs, actions: torch.Tensor, members: Members = None) -> torch.Tensor:
        """actions [B, N, A] -> values [B, N, M], of the given members (None: all)."""
        out = self.outputs(feats, actions, members)
        return out.squeeze(-1) if self.bins is None else self.bins.values(out)

    def errors(self, feats: Obs, action: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """What a step lowers: of action [B, A] and target values [B], for each member, [B, M]."""
        out = self.outputs(feats, action.unsqueeze(1))[:, 0]
        if self.bins is not None:
            return self.bins.loss(out, target)
        return (out.squeeze(-1) - target.unsqueeze(-1)).square()


class Critic(Valuing):
    """Two independent Q heads, q1 and q2, on {"feat" [B, patches, dim], "prop" [B, P]}.

    ``prop`` is ignored (may be missing) when prop_dim is 0.
    """

    def __init__(
        self,
        repr_dim: int,
        patch_repr_dim: int,
        prop_dim: int,
        action_dim: int,
        cfg: CriticConfig | None = None,
        bins: ValueBinsConfig | None = None,
    ) -> None:
        super().__init__()
        self.cfg = cfg = cfg if cfg is not None else CriticConfig()
        self.prop_dim = prop_dim
        outputs = bins.num if bins is not None and bins.num else 1

        def head() -> nn.Module:
            if cfg.spatial_emb > 0:
                patches = repr_dim // patch_repr_dim, patch_repr_dim
                return SpatialEmbQNet(*patches, prop_dim, action_dim, cfg, outputs)
            return _QNet(repr_dim, prop_dim, action_dim, cfg, outputs)

        self.q1, self.q2 = head(), head()
        self.bins = bins_of(bins)

    def forward(self, feats: Obs, action: torch.Tensor) -> torch.Tensor:
        """action [B, A] -> every member's value, [B, M]."""
        return self.q(feats, action.unsqueeze(1))[:, 0]

    def outputs(self, feats: Obs, actions: torch.Tensor, members: Members = None) -> torch.Tensor:
        """See :class:`Valuing`; feats {"feat", "prop"}."""
        prop = feats.get("prop") if self.prop_dim > 0 else None
        if self.prop_dim > 0 and prop is None:
            raise ValueError(f"Critic was built with prop_dim={self.prop_dim} but got prop=None")
        heads = (self.q1, self.q2)
        used = heads if members is None else [heads[m] for m in members]
        return torch.stack([head(feats["feat"], prop, actions) for head in used], dim=2)

    def min_q(self, feats: Obs, action: torch.Tensor) -> torch.Tensor:
        """action [B, A] -> the smaller head's value, [B]."""
        return self(feats, action).min(dim=-1).values

    def td_step(self, *_: Any) -> None:
        """No kernel does all of ``QAgent.update_critic``: the encoder takes part in it."""

    @property
    def draws_subset(self) -> bool:
        """Whether :meth:`draw_members` is random: never, the minimum is over both heads."""
        return False

    def draw_members(self, rng: torch.Generator | None) -> list[int]:
        """The members whose minimum is the target: both, always."""
        return [0, 1]


class MultiFcQ(Valuing):
    """Ensemble of num_q state critics, evaluated together or in part."""

    def __init__(
        self,
        obs_shape: Sequence[int],
        action_dim: int,
        cfg: MultiFcQConfig | None = None,
        bins: ValueBinsConfig | None = None,
    ) -> None:
        super().__init__()
        self.cfg = cfg = cfg if cfg is not None else MultiFcQConfig()
        if len(obs_shape) != 1:
            raise ValueError(f"MultiFcQ needs a flat state, got obs_shape {tuple(obs_shape)}")
        self.state_dim, self.action_dim = obs_shape[0], action_dim
        extra = action_dim if cfg.append_action else 0
        layers: list[nn.Module] = []
        in_dim = self.state_dim + action_dim
        for _ in range(cfg.num_layer):
            layers.append(self._linear(in_dim, cfg.hidden_dim))
            if cfg.layer_norm == 1:
                layers.append(nn.LayerNorm(cfg.hidden_dim))
            if cfg.dropout > 0:
                layers.append(RowDropout(cfg.dropout))
            layers.append(nn.ReLU())
            in_dim = cfg.hidden_dim + extra
        outputs = bins.num if bins is not None and bins.num else 1
        self.net = EnsembleMLP(*layers, self._linear(in_dim, outputs), repeated=extra)
        self.bins = bins_of(bins)

    def _linear(self, in_dim: int, out_dim: int) -> _MultiLinear:
        layer = _MultiLinear(self.cfg.num_q, in_dim, out_dim, bool(self.cfg.bias_per_unit))
        if self.cfg.orth:
            layer.orth_init()
        return layer

    def forward(self, feats: Obs, action: torch.Tensor) -> torch.Tensor:
        """action [B, A] -> every member's value, [B, M]."""
        return self.q(feats, action.unsqueeze(1))[:, 0]

    def outputs(self, feats: Obs, actions: torch.Tensor, members: Members = None) -> torch.Tensor:
        """See :class:`Valuing`; feats {"state" [B, S]}."""
        b, n, _ = actions.shape
        state = feats["state"].unsqueeze(1).expand(-1, n, -1)
        x = torch.cat([state, actions], dim=-1).reshape(b * n, -1)
        out = self.net(x, members)
        return out.view(out.size(0), b, n, -1).permute(1, 2, 0, 3)

    def td_step(
        self,
        feats: Obs,
        action: torch.Tensor,
        target_q: torch.Tensor,
        opt: Adam,
        follow: nn.Module,
        tau: float,
    ) -> torch.Tensor | None:
        """The whole of ``QAgent.update_critic`` in one call, if a kernel takes it; else None.

        ``follow`` is the target critic, which follows by ``tau``. Returns the loss, detached.
        """
        if self.net.repeated or self.bins is not None:
            return None
        assert isinstance(follow, MultiFcQ)  # a copy of this critic
        params = [p for layer in follow.net.layers() for p in layer.params if p is not None]
        x = torch.cat([feats["state"], action], dim=-1)
        return opt.td_step(x, target_q, self.net.layers(), params, tau)

    def min_q(self, feats: Obs, action: torch.Tensor) -> torch.Tensor:
        """action [B, A] -> the smallest member's value, [B].

        With frozen parameters the gradient of ``action`` costs one member per row, not all.
        """
        if self.bins is not None:
            return self(feats, action).min(dim=-1).values
        return self.net.min_member(torch.cat([feats["state"], action], dim=-1))

    @property
    def draws_subset(self) -> bool:
        """Whether :meth:`draw_members` is random."""
        return self.cfg.num_k < self.cfg.num_q

    def draw_members(self, rng: torch.Generator | None) -> list[int]:
        """num_k of num_q members without replacement (REDQ); no draw if num_k equals num_q."""
        num_q, num_k = self.cfg.num_q, self.cfg.num_k
        if not self.draws_subset:
            return list(range(num_q))
        return sorted(torch.randperm(num_q, generator=rng)[:num_k].tolist())
