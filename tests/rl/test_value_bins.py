"""Critics that classify returns (HL-Gauss)."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from rl.value_bins import ValueBins, ValueBinsConfig
from tests.rl.agents import make_batch, observe, pixel_agent, state_agent


def normal_cdf(x: float, mean: float, sigma: float) -> float:
    return 0.5 * (1 + math.erf((x - mean) / (sigma * math.sqrt(2))))


def naive_histogram(target: float, cfg: ValueBinsConfig) -> np.ndarray:
    """The normal distribution's share of each bin, and the shares' sum 1; bin by bin."""
    width = (cfg.high - cfg.low) / cfg.num
    target = min(max(target, cfg.low), cfg.high)
    edges = [cfg.low + i * width for i in range(cfg.num + 1)]
    below = [normal_cdf(e, target, cfg.sigma * width) for e in edges]
    shares = np.diff(below)
    return shares / shares.sum()


@pytest.mark.parametrize("target", [-3.0, -1.0, 0.1234, 0.9, 1.0, 7.0])
def test_histograms_are_those_of_a_slow_oracle(target: float) -> None:
    cfg = ValueBinsConfig(num=21, low=-1.0, high=1.0)
    got = ValueBins(cfg).histogram(torch.tensor([target]))[0]
    np.testing.assert_allclose(got.numpy(), naive_histogram(target, cfg), rtol=1e-3, atol=1e-6)


def test_a_histograms_value_is_its_target() -> None:
    """Away from the ends, where the distribution is cut off."""
    bins = ValueBins(ValueBinsConfig(num=51))
    targets = torch.linspace(0.1, 0.9, 17)
    logits = bins.histogram(targets).clamp(min=1e-12).log()
    torch.testing.assert_close(bins.values(logits), targets, rtol=0, atol=1e-4)


def test_the_loss_is_least_at_the_histogram() -> None:
    bins, target = ValueBins(ValueBinsConfig(num=11)), torch.tensor([0.4])
    best = bins.histogram(target).clamp(min=1e-12).log().unsqueeze(1).requires_grad_(True)
    loss = bins.loss(best, target)
    (gradient,) = torch.autograd.grad(loss.sum(), best)
    assert loss.shape == (1, 1) and float(gradient.abs().max()) < 1e-6
    assert float(bins.loss(torch.zeros(1, 1, 11), target)) == pytest.approx(math.log(11), rel=1e-5)


@pytest.mark.parametrize("pixels", [False, True])
def test_critics_learn_the_values_of_their_targets(pixels: bool) -> None:
    """Terminal steps, whose target is the reward: 0.2 or 0.8."""
    make = pixel_agent if pixels else state_agent
    it, batch = make(lr=3e-3, value_bins=ValueBinsConfig(num=21)), make_batch(8, pixels=pixels)
    batch.bootstrap.zero_()
    batch.reward = torch.tensor([0.2, 0.8] * 4)
    losses = [float(it.update(batch, 0.1, False)["train/critic_loss"]) for _ in range(150)]
    value = it.eval().value(batch.obs, batch.action)
    assert value is not None and losses[-1] < 0.7 * losses[0]
    torch.testing.assert_close(value, batch.reward, rtol=0, atol=0.12)


def test_values_stay_in_the_range_and_teach_the_actor() -> None:
    it = state_agent(value_bins=ValueBinsConfig(num=5, low=-2.0, high=-1.0))
    feats = it.features(observe(16, 0), augment=False)
    q = it.critic.q(feats, torch.rand(16, 4, 3) * 2 - 1)
    assert q.shape == (16, 4, 5) and bool(((q > -2) & (q < -1)).all())
    before = [p.clone() for p in it.actor.parameters()]
    metrics = it.update(make_batch(16), 0.1, True)
    assert -2 < float(metrics["train/actor_loss"]) * -1 < -1
    assert any(not torch.equal(p, b) for p, b in zip(it.actor.parameters(), before, strict=True))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num": 1}, "num: 1, expected 0 or at least 2"),
        ({"num": 5, "low": 1.0, "high": 0.5}, "low: 1, expected less than high 0.5"),
    ],
)
def test_what_makes_no_bins_is_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ValueBinsConfig(**options)  # type: ignore[arg-type]
