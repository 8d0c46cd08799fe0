"""Flow matching against closed forms: straight paths, a Gaussian, two modes."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch

from networks.flow import (
    Velocity,
    VelocityConfig,
    VelocityNet,
    VelocityTransformer,
    field_net,
    flow_loss,
    integrate,
)

POINT = torch.tensor([[[0.3, -0.7]]])


def to_point(points: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
    """The exact field of data that is one point."""
    return (POINT - points) / (1 - time)


def to_gaussian(mean: float, std: float) -> Velocity:
    """The exact field of N(mean, std^2), from N(0, 1)."""

    def velocity(points: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        variance = (1 - time) ** 2 + (time * std) ** 2
        return mean + (time * std**2 - (1 - time)) / variance * (points - time * mean)

    return velocity


@pytest.mark.parametrize("steps", [1, 3, 10])
def test_one_point_is_reached_by_any_number_of_steps(steps: int) -> None:
    noise = torch.randn(1, 5, 2)
    found = integrate(to_point, noise, steps)
    torch.testing.assert_close(found, POINT.expand(1, 5, 2), rtol=0, atol=1e-6)


def test_the_error_of_euler_steps_falls_with_their_number() -> None:
    """The exact flow to N(m, s^2) is the affine map z -> m + s z."""
    noise = torch.linspace(-2, 2, 9, dtype=torch.float64)[None, :, None]
    errors = []
    for steps in (10, 20, 40, 80):
        found = integrate(to_gaussian(0.5, 0.2), noise, steps)
        errors.append(float((found - (0.5 + 0.2 * noise)).abs().max()))
    ratios = [a / b for a, b in pairwise(errors)]
    assert all(1.7 < ratio < 2.4 for ratio in ratios), errors  # first order


def test_the_loss_is_zero_for_the_exact_field_and_that_of_numpy_for_others() -> None:
    noise, time = torch.randn(4, 3, 2), torch.rand(4, 3, 1) * 0.9
    data = POINT.expand(4, 3, 2)
    found = flow_loss(to_point, data, noise, time)
    torch.testing.assert_close(found, torch.zeros(4, 3, 2), rtol=0, atol=1e-8)
    still = flow_loss(lambda points, time: points, data, noise, time).numpy()
    for b in range(4):
        for n in range(3):
            z, c, u = noise[b, n].numpy(), POINT[0, 0].numpy(), float(time[b, n])
            want = ((1 - u) * z + u * c - (c - z)) ** 2
            assert still[b, n] == pytest.approx(want, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("kind", ["mlp", "transformer"])
def test_features_are_read_once_and_each_row_has_its_own(kind: str) -> None:
    torch.manual_seed(0)
    cfg = VelocityConfig(kind, hidden_dim=16, num_layer=2, time_features=8)
    net = field_net(6, 2, 3, 2, cfg).eval()
    features, points, time = torch.randn(4, 6), torch.randn(4, 5, 6), torch.rand(4, 5, 1)
    whole = net(features, points, time)
    assert whole.shape == (4, 5, 6)
    field = net.field(features[2:3])  # type: ignore[operator]
    torch.testing.assert_close(field(points[2:3], time[2:3]), whole[2:3])
    assert not torch.allclose(net(features.flip(0), points, time), whole)
    at_once = field(points[2:3], torch.full((1,), 0.5))
    torch.testing.assert_close(at_once, field(points[2:3], torch.full((1, 5, 1), 0.5)))


def test_every_action_of_a_chunk_sees_the_others_and_the_whole_history() -> None:
    torch.manual_seed(0)
    net = VelocityTransformer(6, 2, 3, 2, VelocityConfig("transformer", 16, 1)).eval()
    features, points = torch.randn(1, 6), torch.randn(1, 1, 6)
    slope = torch.autograd.functional.jacobian(
        lambda f, p: net(f, p, torch.full((1, 1, 1), 0.3)).flatten(), (features, points)
    )
    assert all(bool((part.abs() > 0).all()) for part in slope)


def test_attention_needs_a_width_that_its_heads_share() -> None:
    with pytest.raises(ValueError, match="hidden_dim: 10, expected a multiple of num_head 4"):
        VelocityConfig("transformer", hidden_dim=10)


def test_time_features_must_be_even() -> None:
    with pytest.raises(ValueError, match="time_features: 7, expected an even number"):
        VelocityConfig(time_features=7)


def test_it_learns_two_modes() -> None:
    """Actions -0.5 or 0.5 by chance: their mean, 0, is what regression answers."""
    torch.manual_seed(0)
    net = VelocityNet(1, 1, VelocityConfig(hidden_dim=64, num_layer=3))
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
    for _ in range(400):
        data = torch.randint(0, 2, (256, 1, 1)) - 0.5
        noise, time = torch.randn_like(data), torch.rand(256, 1, 1)
        loss = flow_loss(net.field(torch.zeros(256, 1)), data, noise, time).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        found = integrate(net.field(torch.zeros(1, 1)), torch.randn(1, 400, 1), 20)
    near = (found.abs() - 0.5).abs() < 0.15
    assert near.float().mean() > 0.9
    share = float((found > 0).float().mean())
    assert abs(share - 0.5) < 4 * math.sqrt(0.25 / 400)
