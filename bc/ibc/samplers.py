"""Drawing actions from an energy: uniform box, derivative-free, Langevin.

Florence et al. 2021, appendix B; docs/reference/ibc.md#samplers.

Everything here works in normalised action space, on actions [B, N, A] within the box [low, high]
(tensors [A]), and builds no graph. Observations are encoded once per :class:`Energy`.
Randomness comes only from the given generator.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Literal, NamedTuple

import torch

from bc.ibc.losses import NormType, grad_norm
from common_utils import rows
from common_utils.config_types import Flag
from common_utils.ranges import Between, NoiseScale, StepSize, Temperature
from networks.graphs import Compile
from networks.ibc.energy import Precision, Prepared
from networks.ibc.energy_net import EnergyNet


@dataclass
class DfoConfig:
    """Derivative-free optimisation (appendix B.1, algorithm 1)."""

    # divides the logits when samples are redrawn
    temperature: Temperature = 1.0
    # number of scorings; between them noise is added to the samples
    num_iterations: Annotated[int, Between(1, 10000)] = 3
    # standard deviation of the first noise, halved each time after that
    iteration_std: StepSize = 0.33
    # 0: probabilities and samples are misaligned by one resampling, as published;
    # 1: returns the samples before the last resampling, which match the probabilities
    aligned: Flag = 0


@dataclass
class LangevinConfig:
    """Langevin dynamics (appendix B.3; noise is scaled by the step size itself)."""

    # steps of a chain
    num_iterations: Annotated[int, Between(1, 10000)] = 25
    # step sizes: polynomial falls from init to final, exponential multiplies by the decay
    schedule: Literal["polynomial", "exponential"] = "polynomial"
    # first step size
    sampler_stepsize_init: StepSize = 0.1
    # last step size (polynomial)
    sampler_stepsize_final: StepSize = 1e-5
    # exponent of the polynomial
    sampler_stepsize_power: Annotated[float, Between(0, 100)] = 2.0
    # factor per step (exponential)
    sampler_stepsize_decay: StepSize = 0.8
    # standard deviation of the noise before it is multiplied by the step size
    noise_scale: NoiseScale = 1.0
    # clips each component of the gradient; null: no clipping
    grad_clip: StepSize | None = None
    # clips each component of a step, as a share of half the box
    delta_action_clip: StepSize = 0.1
    # 1: follow the gradient of exp(f) instead of f
    apply_exp: Flag = 0

    def step_sizes(self) -> list[float]:
        """s_0 .. s_{N-1}."""
        init, final, last = (
            self.sampler_stepsize_init,
            self.sampler_stepsize_final,
            max(self.num_iterations - 1, 1),
        )
        if self.schedule == "exponential":
            return [init * self.sampler_stepsize_decay**k for k in range(self.num_iterations)]
        return [
            (init - final) * (1 - k / last) ** self.sampler_stepsize_power + final
            for k in range(self.num_iterations)
        ]


class Energy:
    """A network with one batch of observations, encoded once: logits of actions [B, N, A].

    Args:
        net: the network that scores actions; later changes to it are not followed.
        encoded: the output of ``net.encode`` for the observations.
        precision: arithmetic of the fast passes' products.
        how: compile an evaluation into one graph, or off.
    """

    def __init__(
        self,
        net: EnergyNet,
        encoded: torch.Tensor,
        precision: Precision = "float32",
        how: Compile = "off",
    ) -> None:
        self.encoded = encoded.detach()
        self._net = Prepared(net, precision, how)

    def logits(self, actions: torch.Tensor) -> torch.Tensor:
        """[B, N, A] -> float32 [B, N], no graph."""
        return self._net.logits(self.encoded, actions)

    def logits_and_grad(self, actions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits [B, N] and their gradients with respect to the actions [B, N, A], no graph."""
        return self._net.logits_and_action_grad(self.encoded, actions)

    @torch.no_grad()
    def probabilities(self, actions: torch.Tensor) -> torch.Tensor:
        """softmax over the N actions of each row: [B, N]."""
        return torch.softmax(self.logits(actions), dim=1)


class Samples(NamedTuple):
    """actions float32 [B, N, A] (normalised) and a probability for each, [B, N]."""

    actions: torch.Tensor
    probs: torch.Tensor


def uniform(
    batch: int,
    num: int,
    low: torch.Tensor,
    high: torch.Tensor,
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """[batch, num, A], uniform in the box."""
    draw = partial(torch.rand, generator=generator, device=low.device)
    u = rows.drawn(draw, (batch, num, low.numel()))
    return low + u * (high - low)


# ------------------------------------------------------------------ derivative-free


def draw_counts(probs: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
    """N categorical draws per row of probs [B, N] -> indices int64 [B, N], ascending."""
    num = probs.shape[1]
    # the inverse distribution function at sorted uniforms gives the sorted draws
    cdf = probs.double().cumsum(1)
    exact = partial(torch.rand, generator=generator, device=probs.device, dtype=torch.float64)
    u = rows.drawn(exact, probs.shape)
    u = u.sort(1).values * cdf[:, -1:]
    return torch.searchsorted(cdf, u, right=True).clamp_(max=num - 1)


def take_samples(actions: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """actions [B, N, A] at index [B, M] -> [B, M, A]."""
    return actions.gather(1, index.unsqueeze(-1).expand(-1, -1, actions.shape[2]))


def _expand_counts(counts: torch.Tensor) -> torch.Tensor:
    """counts int64 [B, N], each row summing to N -> indices [B, N], each repeated by its count."""
    numbers = torch.arange(counts.shape[1], device=counts.device)
    return torch.stack([numbers.repeat_interleave(row) for row in counts])


def iterative_dfo(
    energy: Energy,
    actions: torch.Tensor,
    low: torch.Tensor,
    high: torch.Tensor,
    cfg: DfoConfig,
    *,
    generator: torch.Generator | None = None,
    counts: torch.Tensor | None = None,
    noise: torch.Tensor | None = None,
) -> Samples:
    """Redraw by probability, add noise, repeat; the noise halves each time.

    Args:
        actions: where to start, [B, N, A].
        counts: int64 [iterations, B, N], how often each sample is drawn, instead of drawing.
        noise: standard normal [iterations - 1, B, N, A], instead of drawing.

    Returns:
        Samples; unless ``cfg.aligned``, ``probs`` belong to the samples *before* the last
        drawing and ``actions`` are those after it, as in the published program.
    """
    std = cfg.iteration_std
    normal = partial(torch.randn, generator=generator, device=actions.device)
    for k in range(cfg.num_iterations):
        if k:
            z = noise[k - 1] if noise is not None else rows.drawn(normal, actions.shape)
            actions = torch.clamp(actions + z * std, low, high)
            std *= 0.5
        probs = torch.softmax(energy.logits(actions) / cfg.temperature, dim=1)
        if cfg.aligned and k == cfg.num_iterations - 1:
            break
        index = draw_counts(probs, generator) if counts is None else _expand_counts(counts[k])
        actions = take_samples(actions, index)
    return Samples(actions, probs)


# ------------------------------------------------------------------ Langevin


@dataclass
class Chain:
    """The course of a chain, one entry per step: the actions after it, and before it the
    actions, f (exp(f) with apply_exp; the original calls them energies) and its gradient's norm.
    """

    norm_type: NormType = "inf"
    actions: list[torch.Tensor] = field(default_factory=list)
    before: list[torch.Tensor] = field(default_factory=list)
    logits: list[torch.Tensor] = field(default_factory=list)
    grad_norms: list[torch.Tensor] = field(default_factory=list)


def langevin(
    energy: Energy,
    actions: torch.Tensor,
    low: torch.Tensor,
    high: torch.Tensor,
    cfg: LangevinConfig,
    *,
    generator: torch.Generator | None = None,
    noise: torch.Tensor | None = None,
    chain: Chain | None = None,
) -> torch.Tensor:
    """Run a chain from ``actions`` [B, N, A]; returns its last actions.

    One step: a <- clip(a - clip(s * (g / 2 + noise_scale * z))), g the gradient of the energy.

    Args:
        noise: standard normal [iterations, B, N, A], instead of drawing.
        chain: filled with the course of the chain.
    """
    limit = cfg.delta_action_clip * 0.5 * (high - low)
    normal = partial(torch.randn, generator=generator, device=actions.device)
    for k, step in enumerate(cfg.step_sizes()):
        logits, grad = energy.logits_and_grad(actions)
        if cfg.apply_exp:
            logits = logits.exp()
            grad = grad * logits.unsqueeze(-1)
        grad = -grad
        if chain is not None:
            chain.before.append(actions)
            chain.logits.append(logits)
            chain.grad_norms.append(grad_norm(grad, chain.norm_type))
        if cfg.grad_clip is not None:
            grad = grad.clamp(-cfg.grad_clip, cfg.grad_clip)
        z = noise[k] if noise is not None else rows.drawn(normal, actions.shape)
        delta = torch.clamp(step * (0.5 * grad + cfg.noise_scale * z), -limit, limit)
        actions = torch.clamp(actions - delta, low, high)
        if chain is not None:
            chain.actions.append(actions)
    return actions
