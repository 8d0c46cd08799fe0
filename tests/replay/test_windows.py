"""Windows of several steps (``rl.replay.Window``): what they teach, and where they end."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from common_utils import rela
from common_utils.specs import ArraySpec, Batch
from rl.replay import ReplayBuffer, Window
from tests.replay.test_buffer import FakeTask, drive, make
from tests.replay.test_device_store import CPU, assert_same

GAMMA = 0.5
SPECS = {"t": ArraySpec((1,), "float32")}


def replay(**options: Any) -> ReplayBuffer:
    given = {"nstep": 1, "gamma": GAMMA, "max_episode_length": 9, "replay_size": 9, "seed": 1}
    return ReplayBuffer(SPECS, 1, **{**given, **options})


def add(buffer: ReplayBuffer, length: int, **end: Any) -> None:
    """An episode whose observations and actions tell the time, and that is rewarded at its end."""
    cut_off = not end.get("terminated", True)
    times = np.arange(length + cut_off, dtype=np.float32)[:, None]
    reward = np.eye(length, dtype=np.float32)[-1]
    buffer.add_episode({"t": times}, times[:length], reward, **end)


def row_at(batch: Batch, t: int) -> int:
    """A row that begins at step ``t``."""
    return int((batch.obs["t"][:, 0] == t).nonzero()[0, 0])


def test_a_success_shorter_than_the_window_teaches_its_first_state() -> None:
    buffer = replay()
    add(buffer, 3)
    batch = buffer.sample(64, window=Window(5))
    assert batch.rewards is not None and batch.valid is not None and batch.weight is None
    first = row_at(batch, 0)
    assert batch.reward[first] == GAMMA**2  # its whole return: nothing is bootstrapped
    assert batch.bootstrap[first] == 0
    assert batch.rewards[first].tolist() == [0, 0, 1, 0, 0]
    assert batch.valid[first].tolist() == [1, 1, 1, 0, 0]
    assert batch.action[first, :, 0].tolist() == [0, 1, 2, 2, 2]  # the last one is repeated


def test_as_published_it_teaches_nothing() -> None:
    buffer = replay()
    add(buffer, 7)
    batch = buffer.sample(256, window=Window(5, "drop"))
    assert batch.weight is not None and batch.valid is not None
    begins = batch.obs["t"][:, 0]
    assert torch.equal(batch.weight, (begins <= 2).float())  # the last four starts do not count
    same = replay()
    add(same, 7)
    assert_same(batch, same.sample(256, window=Window(5)))  # the rows themselves are the same


def test_a_time_limit_is_no_end_if_it_is_bootstrapped_from() -> None:
    buffer = replay(bootstrap_truncated=True)
    add(buffer, 4, terminated=False)
    batch = buffer.sample(64, window=Window(3))
    assert batch.valid is not None
    for t, steps in ((0, 3), (1, 3), (2, 2), (3, 1)):
        row = row_at(batch, t)
        assert batch.bootstrap[row] == GAMMA**steps
        assert batch.next_obs["t"][row, 0] == t + steps
        assert batch.valid[row].sum() == steps


def test_windows_of_one_step_are_the_transitions() -> None:
    a, b = (make(nstep=1) for _ in range(2))
    for buffer in (a, b):
        drive(buffer, FakeTask(0), 60, draw=False)
    assert_same(a.sample(32), b.sample(32, window=Window(1)))
    assert a.mark() == b.mark()
    assert a.sample(4).valid is None


@pytest.mark.parametrize("bootstrap_truncated", [False, True])
def test_on_a_device_they_are_the_same(bootstrap_truncated: bool) -> None:
    options: dict[str, Any] = {"nstep": 1, "bootstrap_truncated": bootstrap_truncated}
    a, b = make(resident=CPU, **options), make(**options)
    tasks = FakeTask(0), FakeTask(0)
    window = Window(4, "drop")
    for _ in range(40):
        for buffer, task in zip((a, b), tasks, strict=True):
            drive(buffer, task, 7, draw=False)
        if b.size():
            assert_same(a.sample(16, window=window), b.sample(16, window=window))
        if b.size(bc=True):
            got, want = (x.sample_rl_bc(9, 5, window=window) for x in (a, b))
            assert_same(got, want)


@pytest.mark.parametrize("horizon", [0, -1, 5000])
def test_an_impossible_horizon_is_refused(horizon: int) -> None:
    buffer = replay()
    add(buffer, 3)
    with pytest.raises(ValueError, match=rf"the horizon must be in \[1, 4096\], got {horizon}"):
        buffer.sample(4, window=Window(horizon))


def test_whole_episodes_have_no_windows() -> None:
    episodes = rela.MultiStepTransitionReplay(1, 1, 5, 1)
    with pytest.raises(ValueError, match="expected 1 of a replay that draws whole episodes"):
        episodes.sample(2, None, 3)
