"""Whoever stacks, stacks alike: environments, readers, the agents' functions and the replay."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from common_utils import rela
from common_utils.ibrl_utils import concat_obs
from common_utils.stacking import Stacker, StackPad, gather_stack, stack_episode


def slowly(frames: np.ndarray, t: int, stack: int, pad: StackPad) -> np.ndarray:
    """The definition in docs/reference/ibrl.md#replay, and its variant of Implicit BC."""
    before = frames[0] if pad == "repeat" else np.zeros_like(frames[0])
    return np.concatenate([frames[t - k] if t - k >= 0 else before for k in range(stack)])


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 6), min_size=1, max_size=4),
    stack=st.integers(1, 5),
    pad=st.sampled_from(["zeros", "repeat"]),
    image=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_every_stacker_follows_the_definition(
    lengths: list[int], stack: int, pad: StackPad, image: bool, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    shape = (3, 2, 2) if image else (5,)
    episodes = [rng.integers(1, 255, (n, *shape)).astype(np.uint8) for n in lengths]
    want = [[slowly(e, t, stack, pad) for t in range(len(e))] for e in episodes]
    starts = np.repeat(np.concatenate([[0], np.cumsum(lengths)[:-1]]), lengths)
    rows = rng.integers(sum(lengths), size=16)
    got = gather_stack(np.concatenate(episodes), rows, starts[rows], stack, pad)
    np.testing.assert_array_equal(got, np.concatenate(want)[rows])
    stacker = Stacker(stack, pad)
    for frames, expected in zip(episodes, want, strict=True):
        stacker.reset()
        np.testing.assert_array_equal([stacker.push(f) for f in frames], expected)
        if pad == "zeros":
            np.testing.assert_array_equal(stack_episode(frames, stack), expected)
            tensors = list(torch.from_numpy(frames))
            for t in range(len(frames)):
                np.testing.assert_array_equal(concat_obs(t, tensors, stack), expected[t])


def test_a_stack_is_at_least_one_step() -> None:
    with pytest.raises(ValueError, match="stack is 0"):
        Stacker(0)


def test_the_core_of_the_replay_stacks_alike() -> None:
    frames = np.random.default_rng(0).standard_normal((6, 2, 3)).astype(np.float32)
    replay = rela.SingleStepTransitionReplay(
        1, 1, 5, 1, stacks={"x": 4}, stack_order="newest_first"
    )
    replay.add(
        rela.episode_from_arrays(
            {"x": frames},
            {"a": np.zeros((6, 1), np.float32)},
            np.zeros(6, np.float32),
            terminated=True,
            truncated=False,
            nstep=1,
            gamma=0.9,
        )
    )
    np.testing.assert_array_equal(stack_episode(frames, 4), replay.get(0)["obs"]["x"])
