"""Noise, schedules, augmentation, target updates."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from common_utils.data_aug import RandomShiftsAug
from common_utils.ibrl_utils import (
    TruncatedNormal,
    clip_action_norm,
    concat_obs,
    count_parameters,
    eval_mode,
    orth_weight_init,
    resize_images,
    schedule,
    unstack_obs,
)


@pytest.mark.parametrize(
    "text", ["", "fast", "linear(1,2)", "linear(1,0.1,0)", "linear(a,b,c)", "step_linear(1,2,3)"]
)
def test_bad_schedules_are_named(text: str) -> None:
    with pytest.raises(ValueError, match="schedule"):
        schedule(text, 0)


def test_noise_has_its_own_generator_and_limits() -> None:
    dist = TruncatedNormal(torch.zeros(1000, 2), 0.5)
    first = dist.sample(generator=torch.Generator().manual_seed(7))
    torch.manual_seed(1)
    again = dist.sample(generator=torch.Generator().manual_seed(7))
    assert torch.equal(first, again)
    assert first.std().item() == pytest.approx(0.5, abs=0.05)
    assert first.abs().max() < 1
    assert dist.sample(clip=0.3).abs().max() <= 0.3
    per_dim = TruncatedNormal(torch.zeros(1000, 2), torch.tensor([0.0, 0.2])).sample()
    assert not per_dim[:, 0].any()
    assert per_dim[:, 1].any()


def test_clip_action_norm_of_nothing_is_nothing() -> None:
    action = torch.zeros(2, 7, requires_grad=True)
    y = clip_action_norm(action, 0.5)
    y.sum().backward()
    assert not y.any()
    assert action.grad is not None
    assert torch.isfinite(action.grad).all()
    with pytest.raises(ValueError, match="7-dim"):
        clip_action_norm(torch.zeros(2, 4), 0.5)


@settings(deadline=None, max_examples=40)
@given(
    pad=st.integers(0, 5),
    size=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    seed=st.integers(0, 1000),
)
def test_random_shift_is_the_documented_crop(pad: int, size: tuple[int, int], seed: int) -> None:
    h, w = size
    torch.manual_seed(seed)
    x = torch.randint(0, 256, (3, 2, h, w), dtype=torch.uint8)
    aug = RandomShiftsAug(pad)
    shifts = aug.draw(3, x.device)
    assert shifts.min() >= 0
    assert shifts.max() <= 2 * pad
    y = aug.shift(x, shifts)
    assert y.dtype == x.dtype
    for b, (sx, sy) in enumerate(shifts.tolist()):
        rows = [min(max(i + sy - pad, 0), h - 1) for i in range(h)]
        cols = [min(max(j + sx - pad, 0), w - 1) for j in range(w)]
        assert torch.equal(y[b], x[b][:, rows][:, :, cols])


def test_eval_mode_restores_each_module_even_after_an_error() -> None:
    a, b = nn.Dropout(), nn.Dropout().eval()
    with eval_mode(a, b):
        assert not a.training
        assert not b.training
    assert a.training
    assert not b.training
    with pytest.raises(KeyError), eval_mode(a):
        raise KeyError
    assert a.training


def test_concat_obs_refuses_impossible_indices() -> None:
    obses = [torch.ones(2)]
    with pytest.raises(ValueError, match="idx 1"):
        concat_obs(1, obses, 1)
    with pytest.raises(ValueError, match="stack 0"):
        concat_obs(0, obses, 0)


def test_unstack_obs_puts_the_oldest_first() -> None:
    old, new = torch.randint(0, 256, (2, 2, 3, 4, 5), dtype=torch.uint8).unbind(1)
    stacked = torch.cat([new, old], dim=1)
    assert torch.equal(unstack_obs(stacked, 2), torch.stack([old, new], dim=1))
    with pytest.raises(ValueError, match=r"4 \* C.*\[2, 6, 4, 5\]"):
        unstack_obs(stacked, 4)


def test_orthogonal_initialisation() -> None:
    net = nn.Sequential(nn.Linear(8, 8), nn.Conv2d(2, 2, 1), nn.Conv2d(1, 1, 1, bias=False))
    net.apply(orth_weight_init)
    eye = net[0].weight @ net[0].weight.T
    torch.testing.assert_close(eye, torch.eye(8), atol=1e-5, rtol=0)
    w = net[1].weight.flatten(1)
    torch.testing.assert_close(w @ w.T, 2 * torch.eye(2), atol=1e-5, rtol=0)
    assert not net[0].bias.any()
    assert count_parameters(net) == 8 * 8 + 8 + 4 + 2 + 1


def test_resizing_keeps_dtype_batch_and_size() -> None:
    x = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8)
    assert resize_images(x, 8).shape == (2, 3, 8, 8)
    assert torch.equal(resize_images(x, 8)[1], resize_images(x[1], 8))
    same = x[..., :8, :8]
    assert resize_images(same, 8) is same
