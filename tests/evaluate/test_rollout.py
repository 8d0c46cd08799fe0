"""In-process evaluation, statistics and videos."""

from __future__ import annotations

import sys
from pathlib import Path

import imageio.v2 as imageio
import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

from pendulum_env import PendulumEnv

from common_utils.errors import UserError
from evaluate.rollout import Episode, EvalResult, run_eval
from evaluate.stats import wilson
from evaluate.video import annotate, write_video


class Still:
    """Does nothing; not even a torch module."""

    stochastic_eval = False

    def act(self, obs, *, eval_mode=True, cpu=True, generator=None):
        return torch.zeros(1)


class Balance:
    """A hand-made controller that holds the pole."""

    stochastic_eval = False

    def act(self, obs, *, eval_mode=True, cpu=True, generator=None):
        x, angle, dx, dangle = obs["state"]
        return torch.tanh(x * 0.3 + angle * 8 + dx * 0.5 + dangle * 1.5).reshape(1)


def test_scores_successes_lengths():
    env = PendulumEnv({"horizon": 60})
    good, bad = run_eval(env, Balance(), 4, 0), run_eval(env, Still(), 4, 0)
    env.close()
    assert good.success_rate == 1 and (good.lengths == 60).all()
    assert bad.success_rate == 0 and (bad.lengths < 60).all()
    assert good.mean_score > bad.mean_score > 0
    assert str(good.rate()).startswith("1.000 [0.5")


def test_results_are_sorted_by_seed():
    result = EvalResult.of([Episode(5, 1.0, True, 3), Episode(2, 0.0, False, 9)])
    assert list(result.seeds) == [2, 5] and list(result.successes) == [False, True]
    assert list(result.lengths) == [9, 3] and len(result) == 2


class Faulty:
    stochastic_eval = False

    def __init__(self, action):
        self.action = action

    def act(self, obs, *, eval_mode=True, cpu=True, generator=None):
        return self.action


@pytest.mark.parametrize(
    ("action", "message"),
    [
        (torch.full((1,), torch.nan), "chose the action .nan. at step 0"),
        (torch.zeros(1, 1), r"shape \[1, 1\]"),
    ],
)
def test_faulty_actions_are_refused(action, message):
    env = PendulumEnv({})
    with pytest.raises(UserError, match=message):
        run_eval(env, Faulty(action), 1, 0)
    env.close()


def test_recording_writes_one_playable_video_per_game(tmp_path):
    env = PendulumEnv({"horizon": 12})
    result = run_eval(env, Balance(), 2, 7, record=tmp_path)
    env.close()
    videos = sorted(tmp_path.iterdir())
    assert [v.name for v in videos] == ["seed7_success.mp4", "seed8_success.mp4"]
    frames = imageio.mimread(videos[0], memtest=False)
    assert len(frames) == result.lengths[0] + 10
    assert frames[0].shape == (64, 96, 3), "odd sizes are cut to even ones"
    last = frames[-1].astype(int)
    assert last[32, 0, 1] > last[32, 0, 0] + 60, "the successful end has a green border"
    first = frames[0].astype(int)
    assert abs(first[32, 0, 1] - first[32, 0, 0]) < 30


def test_video_faults_are_named(tmp_path):
    with pytest.raises(ValueError, match="no frames"):
        write_video(tmp_path / "a.mp4", [])
    frames = [np.zeros((8, 8, 3), np.uint8), np.zeros((8, 8, 3), np.float32)]
    with pytest.raises(ValueError, match="frame 1 is float32"):
        write_video(tmp_path / "a.mp4", frames)
    assert not list(tmp_path.iterdir())


def test_annotate_leaves_the_frame_alone():
    frame = np.zeros((40, 80, 3), np.uint8)
    assert annotate(frame, "hello", True).any() and not frame.any()


def test_wilson_against_published_values():
    # Newcombe 1998, table I: 81/263 and 0/20
    rate = wilson(81, 263)
    assert (round(rate.low, 4), round(rate.high, 4)) == (0.2553, 0.3662)
    rate = wilson(0, 20)
    assert rate.low == 0 and round(rate.high, 4) == 0.1611
    assert wilson(20, 20).high == 1
    with pytest.raises(ValueError, match="5 successes of 3"):
        wilson(5, 3)
