"""The Meta-World image policy: one camera, the uncompressed ResNet feature, a two-layer head."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import nn

from bc.base import PolicyConfig, PolicyInputs
from bc.explicit.base import ExplicitPolicy, check_prop
from common_utils.config_types import Flag
from common_utils.data_aug import RandomShiftsAug
from common_utils.ibrl_utils import orth_weight_init
from common_utils.ranges import Dropout, Width
from common_utils.specs import ArraySpec, Obs
from networks.dropout import RowDropout
from networks.encoder import ResNetEncoder, ResNetEncoderConfig


@dataclass
class BcPolicyConfig(PolicyConfig):
    """Meta-World policy on one camera."""

    # kind of encoder; only "resnet" exists
    net_type: Literal["resnet"] = "resnet"
    # the encoder
    resnet: ResNetEncoderConfig = field(default_factory=ResNetEncoderConfig)
    # width of the two hidden layers
    hidden_dim: Width = 1024
    # dropout probability in the hidden layers
    dropout: Dropout = 0
    # 1: orthogonal initialisation of the head
    orth_init: Flag = 1
    # 1: compress the visual feature to feature_dim and append proprioception
    use_prop: Flag = 0
    # width of the compressed feature (use_prop 1 only)
    feature_dim: Width = 256
    # unused, kept so that the original's configs load
    proj_dim: Width = 1024


class BcPolicy(ExplicitPolicy):
    """{camera: uint8 [B, C, H, W], "prop": [B, P]} -> actions [B, A].

    ``camera`` is the key of the image: "obs" in the original's Meta-World, or the name of a
    camera. ``self.aug`` shifts the images of a training batch.
    """

    def __init__(
        self,
        obs_shape: Sequence[int],
        prop_shape: Sequence[int],
        action_dim: int,
        cfg: BcPolicyConfig | None = None,
        camera: str = "obs",
    ) -> None:
        super().__init__()
        self.cfg = cfg = cfg if cfg is not None else BcPolicyConfig()
        self.obs_shape, self.prop_shape = tuple(obs_shape), tuple(prop_shape)
        self.action_dim, self.camera = action_dim, camera
        self.aug: nn.Module = RandomShiftsAug(pad=4)
        self.encoder = ResNetEncoder(obs_shape, cfg.resnet)
        in_dim = self.encoder.repr_dim
        if cfg.use_prop:
            self.compress = nn.Sequential(
                nn.Linear(in_dim, cfg.feature_dim),
                nn.LayerNorm(cfg.feature_dim),
                RowDropout(cfg.dropout),
                nn.ReLU(),
            )
            in_dim = cfg.feature_dim + self.prop_shape[0]
        layers: list[nn.Module] = []
        for width in (in_dim, cfg.hidden_dim):
            layers += [
                nn.Linear(width, cfg.hidden_dim),
                RowDropout(cfg.dropout),
                nn.LayerNorm(cfg.hidden_dim),
                nn.ReLU(),
            ]
        self.policy = nn.Sequential(*layers, nn.Linear(cfg.hidden_dim, action_dim))
        if cfg.orth_init:
            self.policy.apply(orth_weight_init)

    @classmethod
    def build(cls, inputs: PolicyInputs, cfg: BcPolicyConfig) -> BcPolicy:
        """Build from the one camera, and proprioception with use_prop."""
        check_prop(cfg.use_prop, inputs)
        shapes = (inputs.obs_shape, inputs.prop_shape, inputs.action_dim)
        return cls(*shapes, cfg, camera=inputs.key)

    def input_specs(self) -> dict[str, ArraySpec]:
        """The camera, and "prop" with use_prop."""
        specs = {self.camera: ArraySpec(self.obs_shape, "uint8")}
        if self.cfg.use_prop:
            specs["prop"] = ArraySpec(self.prop_shape)
        return specs

    def forward(self, obs: Obs) -> torch.Tensor:
        """Batched observations -> actions [B, A] in [-1, 1]."""
        h = self.encoder(obs[self.camera])
        if self.cfg.use_prop:
            h = torch.cat([self.compress(h), obs["prop"]], dim=-1)
        return torch.tanh(self.policy(h))

    def augment(self, obs: Obs) -> Obs:
        """Shifted images."""
        return {**obs, self.camera: self.aug(obs[self.camera])}
