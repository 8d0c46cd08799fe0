"""Recordings in native action ranges, windows, passes over the data, statistics."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

from ibc_data import write_particle

from bc.dataset import DatasetConfig, DatasetError, RobomimicDataset
from bc.normalized import FrameStatistics
from common_utils.specs import SpecError
from networks.normalizer import AffineNormalizer


def dataset(path: Path, seed: int = 0, **kwargs) -> RobomimicDataset:
    kwargs = {"action_low": [0.0], "action_high": [1.0], "eval_episode_len": 50, **kwargs}
    cfg = DatasetConfig(path=str(path), use_state=1, state_stack=2, stack_pad="repeat", **kwargs)
    return RobomimicDataset(cfg, seed=seed)


@pytest.fixture
def path(tmp_path) -> Path:
    return write_particle(tmp_path / "particle.hdf5")


def test_windows_repeat_the_first_row_and_never_mix_episodes(path):
    data = dataset(path)
    batch = data.batch_at(np.array([0, 1, 11, 12, 13]))
    state = batch.obs["state"].view(5, 2, 8)  # newest first
    # alphabetical: pos_agent, pos_first_goal, pos_second_goal, vel_agent; the velocity is the
    # demonstration's number
    assert state[:, :, 6].tolist() == [[0, 0], [0, 0], [0, 0], [1, 1], [1, 1]]
    assert torch.equal(state[0, 0], state[0, 1]) and torch.equal(state[3, 0], state[3, 1])
    assert torch.equal(state[1, 1], state[0, 0]) and torch.equal(state[4, 1], state[3, 0])
    # the target is the action of the window's newest row: first goal, then second
    native = (batch.action + 1) / 2
    torch.testing.assert_close(native[[0, 1]], state[[0, 1], 0, 2:4])
    torch.testing.assert_close(native[2], state[2, 0, 4:6])


def test_zeros_before_the_start_remain_the_default(path):
    cfg = DatasetConfig(path=str(path), use_state=1, state_stack=2, eval_episode_len=50)
    state = RobomimicDataset(cfg).batch_at(np.array([12])).obs["state"].view(2, 8)
    assert state[0].abs().sum() > 0 and state[1].abs().sum() == 0


def test_boundary_rows_can_be_left_out(path):
    with_them, without = dataset(path), dataset(path, boundary_rows=0)
    assert (with_them.num_steps, without.num_steps) == (36, 33)
    lengths = [len(demo) for demo in without.episodes()]
    assert lengths == [11, 8, 14]
    assert [len(demo.rewards) for demo in without.episodes()] == lengths
    # the time limit counts what was played
    dataset(path, eval_episode_len=14)
    with pytest.raises(DatasetError, match="14 steps, longer than dataset.eval_episode_len 13"):
        dataset(path, eval_episode_len=13)


@pytest.mark.parametrize(
    "kwargs, match",
    [
        ({"action_low": [0.0, 0.0, 0.0], "action_high": [1.0] * 3}, "2 dimensions"),
        ({"action_low": [0.5], "action_high": [1.0]}, r"\|action\| up to"),
    ],
)
def test_action_ranges_that_do_not_fit_are_refused(path, kwargs, match):
    with pytest.raises(DatasetError, match=match):
        dataset(path, **kwargs)


@pytest.mark.parametrize(
    "low, high, match",
    [
        ([0.0], [], "expected both"),
        ([1.0], [1.0], "below action_high"),
        ([0.0], [np.inf], "finite"),
    ],
)
def test_impossible_action_ranges_are_refused(low, high, match):
    with pytest.raises(ValueError, match=match):
        DatasetConfig(use_state=1, action_low=low, action_high=high)


def test_a_range_per_dimension(path):
    data = dataset(path, action_low=[0.0, -1.0], action_high=[1.0, 1.0])
    both = dataset(path)
    rows = np.arange(data.num_steps)
    a, b = data.batch_at(rows).action, both.batch_at(rows).action
    assert torch.equal(a[:, 0], b[:, 0])
    torch.testing.assert_close(a[:, 1], (b[:, 1] + 1) / 2)


def rows_of(batch) -> list[tuple[float, ...]]:
    return [tuple(row) for row in batch.obs["state"].tolist()]


def test_a_pass_has_every_step_once_and_goes_on(path):
    data = dataset(path, sampling="epochs")
    drawn = [r for _ in range(5) for r in rows_of(data.sample_bc(18))]
    every = sorted(rows_of(data.batch_at(np.arange(36))))
    assert sorted(drawn[:36]) == sorted(drawn[36:72]) == every
    assert drawn[:36] != drawn[36:72]
    # a batch may be longer than a pass, and cross its end
    assert len(rows_of(data.sample_bc(80))) == 80


@pytest.mark.parametrize("sampling", ["epochs", "replacement"])
def test_sampling_resumes_in_the_middle_of_a_pass(path, sampling):
    data = dataset(path, seed=3, sampling=sampling)
    for _ in range(4):
        data.sample_bc(10)
    state = data.state_dict()
    expected = [rows_of(data.sample_bc(10)) for _ in range(8)]
    other = dataset(path, seed=4, sampling=sampling)
    other.sample_bc(7)
    other.load_state_dict(state)
    assert [rows_of(other.sample_bc(10)) for _ in range(8)] == expected


def test_statistics_are_of_the_first_shuffled_samples_and_draw_nothing(path):
    data, untouched = dataset(path, seed=5), dataset(path, seed=5)
    some = torch.cat([b.action for b in data.first_samples(20, batch_size=8)])
    assert len(some) == 20
    everything = torch.cat([b.action for b in data.first_samples(0)])
    assert torch.equal(everything[:20], some) and len(everything) == 36
    assert len(torch.cat([b.action for b in data.first_samples(1000)])) == 36
    assert rows_of(data.sample_bc(9)) == rows_of(untouched.sample_bc(9))


def test_statistics_of_images_are_those_of_all_pixels_by_colour():
    rng = np.random.default_rng(0)
    images = torch.from_numpy(rng.integers(0, 256, (10, 6, 4, 5), np.uint8))
    images[:, 2::3] = 7  # a colour that never changes
    found = FrameStatistics()
    for part in images.split(4):
        found.add(part, 2)
    mean, std = found.mean_and_std()
    pixels = images.double().div(255).view(10, 2, 3, 4, 5).transpose(1, 2).transpose(0, 1)
    pixels = pixels.flatten(1)
    torch.testing.assert_close(mean, pixels.mean(1), rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(std, pixels.std(1, correction=0), rtol=1e-5, atol=1e-6)


def test_statistics_of_nothing_or_of_nan_are_refused():
    with pytest.raises(SpecError, match="0 observations"):
        FrameStatistics().mean_and_std()
    found = FrameStatistics()
    found.add(torch.full((3, 4), float("nan")), 2)
    with pytest.raises(SpecError, match="finite"):
        found.mean_and_std()


def test_affine_normaliser_goes_both_ways_and_lives_in_the_weights():
    data = torch.randn(50, 3) * torch.tensor([1.0, 5.0, 0.0]) + 2
    for fit in ("fit_standard", "fit_min_max"):
        normalizer = AffineNormalizer(3)
        assert torch.equal(normalizer(data), data)
        getattr(normalizer, fit)(data)
        x = normalizer(data)
        torch.testing.assert_close(normalizer.denormalize(x), data)
        if fit == "fit_min_max":
            assert x[:, :2].amin(0).tolist() == pytest.approx([-1, -1])
            assert x[:, :2].amax(0).tolist() == pytest.approx([1, 1])
        other = AffineNormalizer(3)
        other.load_state_dict(normalizer.state_dict())
        assert torch.equal(other(data), x)
    for bad in (torch.zeros(0, 3), torch.zeros(4, 2), torch.full((4, 3), float("inf"))):
        with pytest.raises(SpecError, match="AffineNormalizer"):
            AffineNormalizer(3).fit_min_max(bad)
