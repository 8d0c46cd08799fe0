"""Behaviour cloning from images (BcPolicy) and from state vectors (StateBcPolicy)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Any

import torch
from torch import nn

from bc.base import PolicyConfig, PolicyInputs
from bc.explicit.base import ExplicitPolicy, check_prop
from bc.explicit.multiview_encoder import MultiViewEncoder, MultiViewEncoderConfig
from common_utils import rows
from common_utils.config_types import Flag
from common_utils.data_aug import RandomShiftsAug
from common_utils.ibrl_utils import orth_weight_init
from common_utils.ranges import Between, Dropout, Layers, NotNegativeNumber, OneOf, Width
from common_utils.specs import ArraySpec, Obs
from networks.dropout import RowDropout
from networks.mlp import build_fc
from networks.normalizer import Normalizer


@dataclass
class BcPolicyConfig(PolicyConfig):
    """Policy on camera images."""

    # one ResNet per camera, and how their features are joined
    encoder: MultiViewEncoderConfig = field(default_factory=MultiViewEncoderConfig)
    # 1: append proprioception to the visual feature
    use_prop: Flag = 0
    # half width of the uniform noise added to proprioception in training
    prop_noise: NotNegativeNumber = 0
    # largest random shift of training images in pixels (0: none)
    aug_pad: Annotated[int, Between(0, 256)] = 4
    # width of the hidden layers
    hidden_dim: Width = 1024
    # number of hidden layers
    num_layer: Layers = 1
    # dropout probability after each hidden layer
    dropout: Dropout = 0
    # 1: orthogonal initialisation of the hidden layers
    orth_init: Flag = 0


@dataclass
class StateBcPolicyConfig(PolicyConfig):
    """Policy on state vectors."""

    # number of hidden layers
    num_layer: Layers = 3
    # width of the hidden layers
    hidden_dim: Width = 256
    # dropout probability after each hidden layer
    dropout: Dropout = 0.5
    # LayerNorm: 0 none, 1 every hidden layer, 2 last hidden layer only
    layer_norm: Annotated[int, OneOf(0, 1, 2)] = 0
    # 1: normalise the state with statistics kept in the weights (not in the original)
    norm_state: Flag = 0


class BcPolicy(ExplicitPolicy):
    """{camera: uint8 [B, C, H, W], "prop": [B, P]} -> actions [B, A].

    ``self.aug`` shifts the images of a training batch, each camera separately.
    """

    def __init__(
        self,
        obs_shape: Sequence[int],
        prop_shape: Sequence[int],
        action_dim: int,
        rl_cameras: Sequence[str],
        cfg: BcPolicyConfig | None = None,
    ) -> None:
        super().__init__()
        self.cfg = cfg = cfg if cfg is not None else BcPolicyConfig()
        self.obs_shape, self.prop_shape = tuple(obs_shape), tuple(prop_shape)
        self.action_dim, self.rl_cameras = action_dim, tuple(rl_cameras)
        self.aug: nn.Module = RandomShiftsAug(pad=cfg.aug_pad)
        self.encoder = MultiViewEncoder(
            self.obs_shape, 1, self.prop_shape, self.rl_cameras, cfg.use_prop, cfg.encoder
        )
        layers: list[nn.Module] = []
        in_dim = self.encoder.repr_dim
        for _ in range(cfg.num_layer):
            layers += [nn.Linear(in_dim, cfg.hidden_dim), nn.LayerNorm(cfg.hidden_dim)]
            if cfg.dropout > 0:
                layers.append(RowDropout(cfg.dropout))
            layers.append(nn.ReLU())
            in_dim = cfg.hidden_dim
        self.policy = nn.Sequential(*layers, nn.Linear(in_dim, action_dim), nn.Tanh())
        if cfg.orth_init:
            self.policy.apply(orth_weight_init)

    @classmethod
    def build(cls, inputs: PolicyInputs, cfg: BcPolicyConfig) -> BcPolicy:
        """Build from all cameras, and proprioception with use_prop."""
        check_prop(cfg.use_prop, inputs)
        shapes = (inputs.obs_shape, inputs.prop_shape, inputs.action_dim)
        return cls(*shapes, inputs.cameras, cfg)

    def input_specs(self) -> dict[str, ArraySpec]:
        """The cameras, and "prop" with use_prop."""
        specs = {camera: ArraySpec(self.obs_shape, "uint8") for camera in self.rl_cameras}
        if self.cfg.use_prop:
            specs["prop"] = ArraySpec(self.prop_shape)
        return specs

    def forward(self, obs: Obs) -> torch.Tensor:
        """Batched observations -> actions [B, A] in [-1, 1]."""
        return self.policy(self.encoder(obs))

    def augment(self, obs: Obs) -> Obs:
        """Shifted images and, with prop_noise, disturbed proprioception."""
        out = dict(obs)
        for camera in self.rl_cameras:
            out[camera] = self.aug(obs[camera])
        if self.cfg.use_prop and self.cfg.prop_noise > 0:
            prop = obs["prop"]
            drawn = rows.drawn(partial(torch.rand, device=prop.device), prop.shape)
            out["prop"] = prop + (2 * drawn - 1) * self.cfg.prop_noise
        return out


class StateBcPolicy(ExplicitPolicy):
    """{"state": float32 [B, S]} -> actions [B, A]."""

    def __init__(
        self, obs_shape: Sequence[int], action_dim: int, cfg: StateBcPolicyConfig | None = None
    ) -> None:
        super().__init__()
        self.cfg = cfg = cfg if cfg is not None else StateBcPolicyConfig()
        if len(obs_shape) != 1:
            raise ValueError(f"StateBcPolicy needs a flat state, got {tuple(obs_shape)}")
        self.obs_shape, self.action_dim = tuple(obs_shape), action_dim
        # absent when off, so that official checkpoints load strictly
        self.normalizer = Normalizer(obs_shape[0]) if cfg.norm_state else None
        self.net = build_fc(
            obs_shape[0], cfg.hidden_dim, action_dim, cfg.num_layer, cfg.layer_norm, cfg.dropout
        )

    @classmethod
    def build(cls, inputs: PolicyInputs, cfg: StateBcPolicyConfig) -> StateBcPolicy:
        """Build from the state."""
        return cls(inputs.obs_shape, inputs.action_dim, cfg)

    def input_specs(self) -> dict[str, ArraySpec]:
        """The state only."""
        return {"state": ArraySpec(self.obs_shape)}

    def fit(self, batches: Iterable[Any]) -> None:
        """With norm_state, compute the normaliser's statistics of the states."""
        if self.normalizer is not None:
            self.normalizer.fit(torch.cat([batch.obs["state"] for batch in batches]))

    def forward(self, obs: Obs) -> torch.Tensor:
        """Batched observations -> actions [B, A] in [-1, 1]."""
        state = obs["state"]
        if self.normalizer is not None:
            state = self.normalizer(state)
        return self.net(state)
