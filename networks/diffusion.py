"""Diffusion: a network that finds the noise in noisy data (Ho et al., NeurIPS 2020).

At level k of K the data c are mixed with noise z: x_k = sqrt(a_k) c + sqrt(1 - a_k) z, where a_k
falls from nearly 1 to nearly 0 along a squared cosine (Nichol and Dhariwal, ICML 2021). The network
learns z given x_k and k / K. Sampling goes from pure noise to level 0 in a few steps, each of which
estimates c and mixes it anew for the next level: with the same noise (DDIM, Song et al., ICLR
2021), or in part with fresh noise (DDPM).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from networks.flow import Velocity

OFFSET = 0.008  # of the cosine, so that the first levels are not too clean
LARGEST_BETA = 0.999  # share of noise that one level may add


def kept(levels: int) -> torch.Tensor:
    """a_k, the share of the data's variance at each level: float64 [levels], falling."""
    at = torch.arange(levels + 1, dtype=torch.float64) / levels
    curve = ((at + OFFSET) / (1 + OFFSET) * math.pi / 2).cos().square()
    return (curve[1:] / curve[:-1]).clamp(min=1 - LARGEST_BETA).cumprod(0)


def noise_loss(
    net: Velocity, data: torch.Tensor, noise: torch.Tensor, time: torch.Tensor, levels: int
) -> torch.Tensor:
    """Squared error of the noise found at random levels.

    All are [B, n, W], time [B, n, 1] in [0, 1), which is a level's place among all; returns
    [B, n, W].
    """
    level = (time * levels).long().clamp(max=levels - 1)
    share = kept(levels).to(data)[level]
    points = share.sqrt() * data + (1 - share).sqrt() * noise
    return (net(points, level / levels) - noise).square()


def denoise(
    net: Velocity,
    noise: torch.Tensor,
    steps: int,
    levels: int,
    *,
    fresh: Callable[[], torch.Tensor] | None = None,
    bound: float | None = None,
) -> torch.Tensor:
    """Samples [B, n, W] from ``noise``, in ``steps`` of the ``levels``.

    fresh: draws noise like ``noise``, for DDPM; None: DDIM.
    bound: data are known to be within [-bound, bound]; estimates are clipped to that.
    """
    if steps > levels:
        raise ValueError(f"denoise: {steps} steps, expected at most the {levels} levels")
    shares = kept(levels)
    chosen = torch.linspace(levels - 1, 0, steps).round().long().tolist()
    x = noise
    for place, level in enumerate(chosen):
        here = float(shares[level])
        after = float(shares[chosen[place + 1]]) if place + 1 < steps else 1.0
        found = net(x, x.new_full((1,), level / levels))
        data = (x - math.sqrt(1 - here) * found) / math.sqrt(here)
        if bound is not None:
            data = data.clamp(-bound, bound)
            found = (x - math.sqrt(here) * data) / math.sqrt(1 - here)
        variance = 0.0
        if fresh is not None:
            variance = (1 - after) / (1 - here) * (1 - here / after)
        x = math.sqrt(after) * data + math.sqrt(max(1 - after - variance, 0.0)) * found
        if variance and fresh is not None:
            x = x + math.sqrt(variance) * fresh()
    return x
