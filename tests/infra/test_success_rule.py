"""Where recorded episodes end, by each kind of rule."""

from __future__ import annotations

import numpy as np
import pytest

from common_utils.success_rule import (
    TERMINATED,
    TRUNCATED,
    AsRecorded,
    EndedBy,
    Ending,
    InfoSays,
    Recorded,
    RewardReached,
    SparseReward,
    SuccessRule,
)


def ends(
    rule: SuccessRule, *rewards: list[float], horizon: int = 0, **more: object
) -> list[tuple[int, bool, bool]]:
    """(length, success, terminated) of episodes with these rewards."""
    episodes = [Recorded(f"demo_{i}", np.float32(r), **more) for i, r in enumerate(rewards)]
    return [(e.length, e.success, e.terminated) for e in rule.endings(episodes, horizon).episodes]


def test_sparse_rewards_end_at_the_first_one():
    rule = SparseReward("metaworld")
    assert ends(rule, [0, 0, 1, 1], [1, 0], [0.5, 2, 1]) == [
        (3, True, True), (1, True, True), (3, True, True)
    ]  # fmt: skip
    with pytest.raises(ValueError, match="demo_1: no step has reward 1.*last reward 0.5"):
        ends(rule, [0, 1], [0, 0.5])


@pytest.mark.parametrize(
    ("rewards", "lengths"),
    [
        ([[1] * 9, [1] * 5], [9, 5]),  # InvertedPendulum: each step earns 1
        ([[0.9, 1.2, 2, 3]], [4]),  # Hopper: dense
        ([[-3, -2, 4]], [3]),
        ([[0, 0, 1, 1], [0, 3, 0]], [3, 2]),  # sparse
        ([[0, 1, 1], [1]], [2, 1]),  # one of them reached it at once
        ([[-1, -1, 0]], [3]),  # never
    ],
)
def test_a_reward_of_one_ends_an_episode_only_after_zeros(rewards, lengths):
    rule = RewardReached("gym.success_key ''", ends=True)
    assert [e[0] for e in ends(rule, *rewards)] == lengths
    assert [e[1] for e in ends(rule, *rewards)] == [max(r) >= 1 for r in rewards]
    whole = RewardReached("gym.success_key ''", ends=False)
    assert [e[0] for e in ends(whole, *rewards)] == [len(r) for r in rewards]


def test_how_it_ended():
    lasting, falling = EndedBy("x", TRUNCATED), EndedBy("x", TERMINATED)
    rewards = [[1] * 5, [1] * 3]
    assert ends(lasting, *rewards, horizon=5) == [(5, True, False), (3, False, True)]
    assert ends(falling, *rewards, horizon=5) == [(5, False, False), (3, True, True)]
    # what the file says goes before what the length suggests
    assert ends(lasting, *rewards, ended=TRUNCATED) == [(5, True, False), (3, True, False)]
    assert ends(falling, *rewards, horizon=3, ended=TERMINATED)[0] == (5, True, True)
    assert ends(AsRecorded("x"), *rewards, horizon=5) == [(5, True, False), (3, True, True)]
    assert ends(AsRecorded("x"), [1, 1], success=False) == [(2, False, True)]


def test_the_environments_own_verdict():
    said = {"infos": {"won": np.array([0, 0, 1, 1])}}
    stops, goes_on = InfoSays("x", "won", ends=True), InfoSays("x", "won", ends=False)
    assert ends(stops, [1, 1, 1, 1], **said) == [(3, True, True)]
    assert ends(goes_on, [1, 1, 1, 1], horizon=4, **said) == [(4, True, False)]
    assert ends(stops, [1, 1], infos={"won": np.zeros(2)}) == [(2, False, True)]
    found = stops.endings([Recorded("demo_0", np.ones(4, np.float32))], 0)
    assert found.episodes == [Ending(4, True, True)] and "'infos/won' is not in" in found.note


def test_what_is_reported():
    recorded = [Recorded("demo_0", np.ones(4, np.float32))]
    assert SparseReward("metaworld").endings(recorded, 0).ends_at == (
        "its first reward of 1 (metaworld)"
    )
    every_step = RewardReached("gym.success_key ''", ends=True).endings(recorded, 0)
    assert every_step.ends_at.startswith("the end of its recording (gym.success_key ''")
    assert "a played episode ends there" in every_step.note
    assert RewardReached("x", ends=False).endings(recorded, 0).note == ""
