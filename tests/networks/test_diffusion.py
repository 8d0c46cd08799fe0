"""Diffusion against closed forms: one point, a Gaussian, and a slow oracle of its loss."""

from __future__ import annotations

import math
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch

from networks.diffusion import denoise, kept, noise_loss
from networks.flow import Velocity

LEVELS = 100
POINT = torch.tensor([[[0.3, -0.7]]], dtype=torch.float64)


def share_at(time: torch.Tensor) -> torch.Tensor:
    return kept(LEVELS)[(time * LEVELS).round().long()]


def of_gaussian(mean: float, std: float) -> Velocity:
    """The exact noise found in noisy samples of N(mean, std^2)."""

    def net(points: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        a = share_at(time)
        return (1 - a).sqrt() * (points - a.sqrt() * mean) / (a * std**2 + 1 - a)

    return net


def of_point(points: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
    a = share_at(time)
    return (points - a.sqrt() * POINT) / (1 - a).sqrt()


def test_levels_go_from_clean_to_noise() -> None:
    a = kept(LEVELS)
    assert a.shape == (LEVELS,) and bool((a.diff() < 0).all())
    assert a[0] > 0.99 and 0 < a[-1] < 1e-3
    # Nichol and Dhariwal, equation 17, where no level's share of noise is clipped
    curve = [math.cos((k / LEVELS + 0.008) / 1.008 * math.pi / 2) ** 2 for k in range(LEVELS)]
    np.testing.assert_allclose(a[:90], np.array(curve[1:91]) / curve[0], rtol=1e-12)


@pytest.mark.parametrize("steps", [1, 4, LEVELS])
@pytest.mark.parametrize("fresh", [False, True])
def test_one_point_is_reached_by_any_number_of_steps(steps: int, fresh: bool) -> None:
    noise = torch.randn(1, 5, 2, dtype=torch.float64)
    draw = partial(torch.randn_like, noise) if fresh else None
    found = denoise(of_point, noise, steps, LEVELS, fresh=draw)
    torch.testing.assert_close(found, POINT.expand(1, 5, 2), rtol=0, atol=1e-9)


def test_without_fresh_noise_a_gaussian_is_an_affine_map() -> None:
    noise = torch.linspace(-1.5, 1.5, 7, dtype=torch.float64)[None, :, None]
    errors = []
    for steps in (10, 20, 50, LEVELS):
        found = denoise(of_gaussian(0.5, 0.2), noise, steps, LEVELS)
        errors.append(float((found - (0.5 + 0.2 * noise)).abs().max()))
    assert all(a > b for a, b in pairwise(errors)) and errors[-1] < 0.03, errors


def test_with_fresh_noise_samples_have_the_mean_and_deviation_of_the_data() -> None:
    torch.manual_seed(0)
    noise = torch.randn(1, 20_000, 1, dtype=torch.float64)
    draw = partial(torch.randn_like, noise)
    found = denoise(of_gaussian(0.5, 0.2), noise, LEVELS, LEVELS, fresh=draw)
    assert float(found.mean()) == pytest.approx(0.5, abs=0.01)
    assert float(found.std()) == pytest.approx(0.2, abs=0.015)


def test_estimates_are_clipped_to_what_is_known_of_the_data() -> None:
    noise = 3 * torch.randn(1, 50, 2, dtype=torch.float64)

    def wrong(points: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        return -points

    assert float(denoise(wrong, noise, 10, LEVELS).abs().max()) > 1
    assert float(denoise(wrong, noise, 10, LEVELS, bound=1.0).abs().max()) <= 1


def test_the_loss_is_that_of_numpy() -> None:
    torch.manual_seed(0)
    data, noise = torch.randn(4, 3, 2), torch.randn(4, 3, 2)
    time = torch.rand(4, 3, 1)
    time[0, 0] = 1 - 1e-7
    seen = []

    def net(points: torch.Tensor, when: torch.Tensor) -> torch.Tensor:
        seen.append(when)
        return 2 * points + when

    found = noise_loss(net, data, noise, time, LEVELS).numpy()
    a = kept(LEVELS).numpy()
    for b in range(4):
        for n in range(3):
            k = min(int(float(time[b, n]) * LEVELS), LEVELS - 1)
            assert float(seen[0][b, n]) == pytest.approx(k / LEVELS)
            c, z = data[b, n].numpy(), noise[b, n].numpy()
            x = math.sqrt(a[k]) * c + math.sqrt(1 - a[k]) * z
            assert found[b, n] == pytest.approx((2 * x + k / LEVELS - z) ** 2, rel=1e-3, abs=1e-5)


def test_more_steps_than_levels_are_refused() -> None:
    with pytest.raises(ValueError, match="101 steps, expected at most the 100 levels"):
        denoise(of_point, POINT, 101, LEVELS)
