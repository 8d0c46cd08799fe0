"""Encoder, actor and critic of one kind of observation, built together: "state" or "pixel".

For each kind an agent has features ``Obs``, an actor ``(feats, stddev) -> TruncatedNormal`` and
a critic with the interface of ``rl.critic``. A new kind of observation is a class and a row here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import nn

from common_utils.data_aug import RandomShiftsAug
from common_utils.errors import ConfigError
from common_utils.specs import Obs
from networks.encoder import (
    DrQEncoder,
    ResNet96Encoder,
    ResNetEncoder,
    VitEncoder,
    set_precision,
)
from networks.normalizer import Normalizer
from rl.actor import Actor, FcActor
from rl.critic import Critic, MultiFcQ
from rl.q_agent_config import QAgentConfig


class Head(Protocol):
    """The networks as an agent uses them."""

    # the observations it reads; the first shows whether a dict is batched
    input_keys: list[str]
    # axes of a batched observation of the first key
    batched_dim: int

    def parts(self) -> dict[str, nn.Module]:
        """Modules under their official names: encoder (pixels), critic, actor, ..."""

    def draw_shifts(self, rows: int, device: torch.device) -> torch.Tensor | None:
        """Random numbers of an augmentation of so many rows; None without augmentation."""

    def features(self, obs: Obs, augment: bool, shifts: torch.Tensor | None = None) -> Obs:
        """The features that actor and critic see, from batched observations.

        shifts: of :meth:`draw_shifts`; None: drawn if ``augment``.
        """


class StateHead:
    """An ensemble of critics (REDQ) and a perceptron on state vectors [S]."""

    batched_dim = 2

    def __init__(
        self,
        obs_shape: Sequence[int],
        prop_shape: Sequence[int],
        action_dim: int,
        camera: str,
        cfg: QAgentConfig,
    ) -> None:
        self.input_keys = ["state"]
        self.critic = MultiFcQ(tuple(obs_shape), action_dim, cfg.state_critic, cfg.value_bins)
        how = cfg.state_actor, cfg.residual, cfg.distill > 0
        self.actor = FcActor(tuple(obs_shape), action_dim, *how)
        self.norm = Normalizer(obs_shape[0]) if cfg.norm_state else None

    def parts(self) -> dict[str, nn.Module]:
        """See :class:`Head`."""
        norm = {} if self.norm is None else {"state_norm": self.norm}
        return {"critic": self.critic, "actor": self.actor, **norm}

    def draw_shifts(self, rows: int, device: torch.device) -> None:
        """See :class:`Head`: states are not augmented."""

    def features(self, obs: Obs, augment: bool, shifts: torch.Tensor | None = None) -> Obs:
        """{"state" float32 [B, S]}, normalised if configured."""
        state = obs["state"].float()
        return {"state": state if self.norm is None else self.norm(state)}


class PixelHead:
    """An encoder of one camera's images [C, H, W], two Q heads and an actor on its features."""

    batched_dim = 4

    def __init__(
        self,
        obs_shape: Sequence[int],
        prop_shape: Sequence[int],
        action_dim: int,
        camera: str,
        cfg: QAgentConfig,
    ) -> None:
        if cfg.norm_state:
            raise ConfigError("norm_state: 1 normalises states, expected 0 with pixels")
        if cfg.use_prop and sum(prop_shape) < 1:
            raise ConfigError(
                f"use_prop: 1, expected 0: there is no proprioception ({tuple(prop_shape)})"
            )
        self.camera, self.use_prop = camera, bool(cfg.use_prop)
        self.input_keys = [camera] + (["prop"] if cfg.use_prop else [])
        self.encoder = _ENCODERS[cfg.enc_type](tuple(obs_shape), cfg)
        set_precision(self.encoder, cfg.precision)
        prop_dim = prop_shape[0] if cfg.use_prop else 0
        dims = (self.encoder.repr_dim, self.encoder.patch_repr_dim, prop_dim, action_dim)
        self.critic = Critic(*dims, cfg.critic, cfg.value_bins)
        self.actor = Actor(*dims, cfg.actor, cfg.residual, cfg.distill > 0)
        self.aug: Any = RandomShiftsAug(pad=4)

    def parts(self) -> dict[str, nn.Module]:
        """See :class:`Head`."""
        return {"encoder": self.encoder, "critic": self.critic, "actor": self.actor}

    def draw_shifts(self, rows: int, device: torch.device) -> torch.Tensor:
        """See :class:`Head`: int64 [rows, 2]."""
        return self.aug.draw(rows, device)

    def features(self, obs: Obs, augment: bool, shifts: torch.Tensor | None = None) -> Obs:
        """{"feat" float32 [B, patches, dim], "prop" [B, P]}."""
        image = obs[self.camera]
        if augment:
            image = self.aug(image) if shifts is None else self.aug.shift(image, shifts)
        feats: dict[str, torch.Tensor] = {"feat": self.encoder(image, flatten=False)}
        if self.use_prop:
            feats["prop"] = obs["prop"].float()
        return feats


HEADS: dict[str, type[StateHead] | type[PixelHead]] = {"state": StateHead, "pixel": PixelHead}

_ENCODERS: dict[str, Callable[[tuple[int, ...], QAgentConfig], Any]] = {
    "vit": lambda shape, cfg: VitEncoder(shape, cfg.vit),
    "resnet": lambda shape, cfg: ResNetEncoder(shape, cfg.resnet),
    "resnet96": lambda shape, cfg: ResNet96Encoder(shape, cfg.resnet96),
    "drq": lambda shape, cfg: DrQEncoder(shape),
}
