"""Policies that make actions of noise: by a learned flow, or by a diffusion.

Both learn single actions or chunks, from states or one camera's images, with the same networks.
The observation is encoded once, however many candidates and steps.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Any, Literal

import torch
from torch import nn

from bc.normalized import ChunkedConfig, NormalizedPolicy, NormConfig
from common_utils import rows
from common_utils.config_types import Flag
from common_utils.ranges import Between
from common_utils.specs import Obs
from networks.diffusion import denoise, noise_loss
from networks.flow import Velocity, VelocityConfig, field_net, flow_loss, integrate
from networks.ibc.pixel import EncoderConfig, ImageCode

Steps = Annotated[int, Between(1, 1000)]


def _bounded() -> NormConfig:
    return NormConfig(min_max_actions=1)


@dataclass
class FlowPolicyConfig(ChunkedConfig):
    """The flow-matching or diffusion policy."""

    # the network over features, noisy actions and time
    net: VelocityConfig = field(default_factory=VelocityConfig)
    # the encoder of images (dataset.use_state 0)
    pixel: EncoderConfig = field(default_factory=EncoderConfig)
    # flow: along straight paths; ddim: diffusion, without noise between the steps; ddpm: with it
    process: Literal["flow", "ddim", "ddpm"] = "flow"
    # steps from noise to an action
    steps: Steps = 10
    # ddim, ddpm: levels of noise in training
    levels: Steps = 100
    # 1: act by a second network, which learns where the steps end and needs one pass
    one_step: Flag = 0
    # normalisation; actions to [-1, 1] unless norm.min_max_actions is 0
    norm: NormConfig = field(default_factory=_bounded)

    def __post_init__(self) -> None:
        if self.process != "flow" and self.steps > self.levels:
            raise ValueError(f"steps: {self.steps}, expected at most levels {self.levels}")
        if self.process == "ddpm" and self.one_step:
            raise ValueError(
                "one_step: 1, expected 0 with process ddpm, which does not end at one place"
            )

    @property
    def draws_in_training(self) -> bool:
        """See :class:`PolicyConfig`."""
        return True


class GenerativeNet(nn.Module):
    """The encoder of images (not for states), the network of the process, and its student."""

    def __init__(
        self,
        encoder: ImageCode | None,
        feature_dim: int,
        history: int,
        length: int,
        action_dim: int,
        cfg: FlowPolicyConfig,
    ) -> None:
        super().__init__()
        sizes = feature_dim, history, length, action_dim
        self.encoder = encoder
        self.teacher: Any = field_net(*sizes, cfg.net)
        self.student: Any = field_net(*sizes, cfg.net) if cfg.one_step else None

    def encode(self, seen: torch.Tensor) -> torch.Tensor:
        """States [B, D], or images [B, T, C, H, W] -> features [B, D]."""
        return seen if self.encoder is None else self.encoder(seen)


class FlowPolicy(NormalizedPolicy):
    """Trained on paths from noise to the demonstrated actions; acts by following them.

    Flow: sampling and loss as in flow Q-learning and Q-chunking (Park et al., Li et al. 2025), and
    so is the one-step student. Diffusion: Chi et al. 2023.
    """

    config_class = FlowPolicyConfig
    cfg: FlowPolicyConfig
    net: GenerativeNet
    stochastic_eval = True

    def make_net(self) -> nn.Module:
        """See :class:`NormalizedPolicy`."""
        cfg, chunk = self.cfg, (self.cfg.chunk.length, self.action_dim)
        if self.pixels:
            encoder = ImageCode(self.stack, cfg.pixel)
            return GenerativeNet(encoder, encoder.out_dim, 1, *chunk, cfg)
        return GenerativeNet(None, self.obs_shape[0], self.stack, *chunk, cfg)

    def network_pass(self, inputs: Obs) -> Any:
        """See :class:`BasePolicy`."""
        features = self.net.encode(self.features(inputs))
        points = features.new_zeros(len(features), 1, self.width)
        return self.net.teacher(features, points, points[..., :1])

    def loss(self, batch: Any) -> torch.Tensor:
        """Squared error of the velocity (of the noise), averaged over the actions' numbers and the
        batch; with ``one_step`` also that of the student. Steps behind an episode's end, where a
        batch of the replay says so (``valid``), count as learned (Q-chunking)."""
        inputs, _ = self._read(batch.obs)
        features = self.net.encode(self.features(inputs))
        data = self.target(batch, features.device).unsqueeze(1)
        noise = self._noise(data.shape, self.generator)
        draw = partial(torch.rand, generator=self.generator, device=features.device)
        time = rows.drawn(draw, (*data.shape[:2], 1))
        errors = self._loss(self.net.teacher.field(features), data, noise, time)
        valid = getattr(batch, "valid", None)
        if valid is not None:
            errors = errors * valid.repeat_interleave(self.action_dim, 1).unsqueeze(1)
        loss = errors.mean()
        if self.net.student is None:
            return loss
        taught = self._student_loss(features.detach())
        self.metrics = {"teacher_loss": loss.detach()}
        self.metrics["student_loss"] = taught.detach()
        return loss + taught

    def _loss(
        self, field: Velocity, data: torch.Tensor, noise: torch.Tensor, time: torch.Tensor
    ) -> torch.Tensor:
        if self.cfg.process == "flow":
            return flow_loss(field, data, noise, time)
        return noise_loss(field, data, noise, time, self.cfg.levels)

    def _student_loss(self, features: torch.Tensor) -> torch.Tensor:
        noise = self._noise((len(features), 1, self.width), self.generator)
        with torch.no_grad():
            ends = self._follow(self.net.teacher.field(features), noise, self.generator)
        return (self._jump(features, noise) - ends).square().mean()

    def _follow(self, field: Velocity, noise: torch.Tensor, rng: torch.Generator) -> torch.Tensor:
        """From noise to normalised actions, step by step."""
        cfg = self.cfg
        if cfg.process == "flow":
            return integrate(field, noise, cfg.steps)
        fresh = partial(self._noise, noise.shape, rng) if cfg.process == "ddpm" else None
        bound = 1.0 if self.norm.min_max_actions else None
        return denoise(field, noise, cfg.steps, cfg.levels, fresh=fresh, bound=bound)

    def follow(self, obs: Obs, noise: torch.Tensor) -> torch.Tensor:
        """Actions [B, n, T * A] in [-1, 1] that the process makes of noise [B, n, T * A], step by
        step, for batched observations; ValueError for one that draws more on the way (ddpm)."""
        if self.cfg.process == "ddpm":
            raise ValueError("FlowPolicy.follow: ddpm does not end at one place, expected ddim")
        inputs, _ = self._read(obs)
        features = self.net.encode(self.features(inputs))
        ends = self._follow(self.net.teacher.field(features), noise, self.generator)
        return self.to_env(ends).reshape(noise.shape)

    def _jump(self, features: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """From noise to normalised actions at once."""
        return self.net.student.field(features)(noise, noise.new_zeros(1))

    def _noise(self, shape: Any, rng: torch.Generator) -> torch.Tensor:
        return rows.drawn(partial(torch.randn, generator=rng, device=rng.device), tuple(shape))

    def _act_normalized(
        self, features: torch.Tensor, greedy: bool, rng: torch.Generator
    ) -> torch.Tensor:
        return self._propose_normalized(features, 1, rng).squeeze(1)

    def _propose_normalized(
        self, features: torch.Tensor, n: int, rng: torch.Generator
    ) -> torch.Tensor:
        encoded = self.net.encode(features)
        noise = self._noise((len(encoded), n, self.width), rng)
        if self.net.student is not None:
            return self._jump(encoded, noise)
        return self._follow(self.net.teacher.field(encoded), noise, rng)
