"""The C++ core against the slow oracle, on random episodes, settings and call sequences."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from common_utils import rela
from tests.replay.oracle import OracleEpisode, OracleReplay

GAMMA = 0.97
DTYPES = ["uint8", "int32", "int64", "float32", "float64"]
SHAPES = [(1,), (3,), (2, 2), (3, 4, 4), (5, 0)]


@st.composite
def setups(draw: Any) -> dict[str, Any]:
    keys = draw(st.lists(st.sampled_from(["cam", "prop", "state", "bc"]), min_size=1, unique=True))
    return {
        "fields": {k: (draw(st.sampled_from(DTYPES)), draw(st.sampled_from(SHAPES))) for k in keys},
        "stacks": {k: draw(st.integers(1, 4)) for k in keys},
        "newest_first": draw(st.booleans()),
        "bootstrap_truncated": draw(st.booleans()),
        "nstep": draw(st.sampled_from([1, 1, 1, 2, 3, 5])),
        "capacity": draw(st.integers(1, 5)),
        "seed": draw(st.integers(0, 2**64 - 1)),
    }


OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.integers(1, 12), st.sampled_from(["term", "trunc", "both"])),
        st.tuples(st.just("sample"), st.integers(1, 9)),
        st.tuples(st.just("sample"), st.just(4)),  # often the same size: prefetched ones are used
        st.tuples(st.just("window"), st.integers(1, 9), st.integers(2, 14)),
        st.tuples(st.just("window"), st.just(4), st.just(3)),
        st.tuples(st.just("state_dict")),
    ),
    min_size=1,
    max_size=25,
)


def build(setup: dict[str, Any], **options: Any) -> rela.SingleStepTransitionReplay:
    return rela.SingleStepTransitionReplay(
        1,
        setup["nstep"],
        setup["capacity"],
        setup["seed"],
        stacks=setup["stacks"],
        stack_order="newest_first" if setup["newest_first"] else "oldest_first",
        bootstrap_truncated=setup["bootstrap_truncated"],
        **options,
    )


def random_episode(
    rng: np.random.Generator, fields: dict[str, Any], number: int, length: int, end: str
) -> OracleEpisode:
    obs = {}
    for key, (dtype, shape) in fields.items():
        values = rng.integers(0, 256, (length + 1, *shape))
        obs[key] = values.astype(dtype)
    reward = rng.standard_normal(length).astype(np.float32)
    return OracleEpisode(number, obs, reward, end != "trunc", end != "term")


def push_all(episode: rela.Episode, e: OracleEpisode, push_final: bool) -> rela.EpisodeData:
    """The step by step way."""
    episode.init({})
    for t in range(len(e)):
        episode.push_obs({k: v[t] for k, v in e.obs.items()})
        episode.push_action({"id": np.array([e.number, t])})
        episode.push_reward(e.reward[t])
        over = t == len(e) - 1
        episode.push_terminal(float(over and e.terminated), over and e.truncated)
    if push_final and e.truncated:
        episode.push_final_obs({k: v[len(e)] for k, v in e.obs.items()})
    return episode.pop_transition()


def at_once(e: OracleEpisode, nstep: int, push_final: bool) -> rela.EpisodeData:
    """The whole-episode way; must be the same."""
    final = push_final and e.truncated
    rows = len(e) + final
    ids = np.stack([np.full(len(e), e.number), np.arange(len(e))], axis=1)
    return rela.episode_from_arrays(
        {k: v[:rows] for k, v in e.obs.items()},
        {"id": ids},
        e.reward,
        terminated=e.terminated,
        truncated=e.truncated,
        final_obs=final,
        nstep=nstep,
        gamma=GAMMA,
    )


def assert_same(a: rela.Batch, b: rela.Batch) -> None:
    for group in ("obs", "next_obs", "action"):
        for key, value in getattr(a, group).items():
            np.testing.assert_array_equal(value, getattr(b, group)[key])
    np.testing.assert_array_equal(a.reward, b.reward)
    np.testing.assert_array_equal(a.rewards, b.rewards)
    np.testing.assert_array_equal(a.valid, b.valid)
    np.testing.assert_array_equal(a.bootstrap, b.bootstrap)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(setups(), OPERATIONS, st.integers(0, 2**32 - 1))
def test_core_is_the_oracle_whatever_prefetch_and_threads(
    setup: dict[str, Any], operations: list[tuple], data_seed: int
) -> None:
    options: list[dict[str, Any]] = [{}, {"prefetch": 1}, {"prefetch": 3, "num_threads": 4}]
    replays = [build(setup, **o) for o in options]
    oracle = OracleReplay(
        setup["nstep"],
        GAMMA,
        setup["capacity"],
        setup["stacks"],
        setup["newest_first"],
        setup["bootstrap_truncated"],
    )
    builder = rela.Episode(setup["nstep"], 12, GAMMA)
    rng = np.random.default_rng(data_seed)
    for operation in operations:
        if operation[0] == "add":
            e = random_episode(rng, setup["fields"], oracle.num_add, *operation[1:])
            # the final observation is optional unless it is bootstrapped from
            final = setup["bootstrap_truncated"] or bool(rng.integers(2))
            for i, replay in enumerate(replays):
                stepwise = i == 0
                data = (
                    push_all(builder, e, final) if stepwise else at_once(e, setup["nstep"], final)
                )
                replay.add(data)
            oracle.add(e)
        elif operation[0] in ("sample", "window") and oracle.episodes:
            size, horizon = operation[1], operation[2] if operation[0] == "window" else 1
            if horizon > 1 and setup["nstep"] > 1:
                with pytest.raises(ValueError, match=r"expected 1: this replay has n_step \d"):
                    replays[0].sample(size, None, horizon)
                continue
            batches = [r.sample(size, None, horizon) for r in replays]
            oracle.check_rows(batches[0], horizon)
            for other in batches[1:]:
                assert_same(batches[0], other)
        elif operation[0] == "state_dict":
            state = replays[0].state_dict()
            replays[0] = build(setup)
            replays[0].load_state_dict(state)
            replays[1].load_state_dict(state)  # over existing contents, with a batch under way
        for replay in replays:
            assert replay.size() == len(oracle.episodes)
            assert replay.num_add() == oracle.num_add
            assert replay.num_transitions == oracle.num_transitions()
    for i, e in enumerate(oracle.episodes):
        got = replays[-1].get(i)
        assert (got["terminated"], got["truncated"]) == (e.terminated, e.truncated)
        np.testing.assert_array_equal(got["raw_reward"], e.reward)
        for t in range(len(e)):
            want = oracle.transition(e, t)
            assert got["reward"][t] == want["reward"]
            assert got["bootstrap"][t] == want["bootstrap"]
            for key in e.obs:
                np.testing.assert_array_equal(got["next_obs"][key][t], want["next_obs"][key])


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(setups(), st.lists(st.integers(1, 9), min_size=1, max_size=6), st.integers(1, 5))
def test_whole_episode_batches_are_time_major_and_padded(
    setup: dict[str, Any], lengths: list[int], batch: int
) -> None:
    setup = {**setup, "capacity": 6, "bootstrap_truncated": False}
    oracle = OracleReplay(setup["nstep"], GAMMA, 6, setup["stacks"], setup["newest_first"], False)
    common = dict(
        stacks=setup["stacks"],
        stack_order="newest_first" if setup["newest_first"] else "oldest_first",
    )
    replay = rela.MultiStepTransitionReplay(1, setup["nstep"], 6, setup["seed"], 2, **common)
    rng = np.random.default_rng(0)
    for length in lengths:
        e = random_episode(rng, setup["fields"], oracle.num_add, length, "term")
        replay.add(at_once(e, setup["nstep"], False))
        oracle.add(e)
    for got, n in (
        (replay.sample(batch, None), batch),
        (replay.get_range(0, len(lengths), None), len(lengths)),
    ):
        T = int(got.seq_len.max())
        assert got.reward.shape == (T, n)
        for b in range(n):
            number = int(got.action["id"][0, b, 0])
            e = oracle.find(number)
            assert got.seq_len[b] == len(e)
            for t in range(T):
                if t >= len(e):
                    assert got.reward[t, b] == got.bootstrap[t, b] == 0
                    assert all(not v[t, b].any() for v in got.obs.values())
                    continue
                want = oracle.transition(e, t)
                assert got.reward[t, b] == want["reward"]
                for key in e.obs:
                    np.testing.assert_array_equal(got.obs[key][t, b], want["obs"][key])


@pytest.mark.parametrize("storage", ["ram", "file"])
def test_big_rows_cross_chunks_and_are_gathered_in_parallel(storage: str, tmp_path: Any) -> None:
    """Enough bytes that helper threads really run, and that chunks are freed and reused."""
    fields = {"cam": ("uint8", (3, 50, 50)), "prop": ("float32", (5,))}
    setup = {
        "nstep": 3, "capacity": 20, "seed": 5, "stacks": {"cam": 2, "prop": 3},
        "newest_first": True, "bootstrap_truncated": True,
    }  # fmt: skip
    oracle = OracleReplay(3, GAMMA, 20, setup["stacks"], True, True)
    where = "ram" if storage == "ram" else str(tmp_path)
    replays = [
        build(setup, storage=where),
        build(setup, storage=where, num_threads=4),
        build(setup, storage=where, prefetch=2, num_threads=2),
    ]
    rng = np.random.default_rng(0)
    for number in range(60):
        e = random_episode(rng, fields, number, int(rng.integers(20, 60)), "trunc")
        oracle.add(e)
        for replay in replays:
            replay.add(at_once(e, 3, True))
        if number % 10 == 9:
            for _ in range(3):
                batches = [r.sample(64, None) for r in replays]
                oracle.check_rows(batches[0])
                for other in batches[1:]:
                    assert_same(batches[0], other)
    assert not list(tmp_path.iterdir())  # the scratch file has no name


def test_draws_are_uniform_over_transitions() -> None:
    replay = rela.SingleStepTransitionReplay(1, 1, 100, 3)
    lengths = [1, 2, 3, 4, 7, 20, 113]
    rng = np.random.default_rng(0)
    for number, length in enumerate(lengths):
        replay.add(
            at_once(random_episode(rng, {"x": ("float32", (1,))}, number, length, "term"), 1, False)
        )
    draws = 300_000
    ids = replay.sample(draws, None).action["id"]
    cells = np.cumsum([0, *lengths[:-1]])[ids[:, 0]] + ids[:, 1]
    counts = np.bincount(cells, minlength=sum(lengths))
    expected = draws / sum(lengths)
    chi2 = ((counts - expected) ** 2 / expected).sum()
    dof = sum(lengths) - 1
    assert abs(chi2 - dof) < 4 * np.sqrt(2 * dof)  # mean dof, variance 2 dof


def test_draws_with_different_seeds_differ_and_pairs_are_independent() -> None:
    def ids(seed: int) -> np.ndarray:
        replay = rela.SingleStepTransitionReplay(1, 1, 10, seed)
        e = random_episode(np.random.default_rng(0), {"x": ("float32", (1,))}, 0, 100, "term")
        replay.add(at_once(e, 1, False))
        return replay.sample(50_000, None).action["id"][:, 1]

    a, b = ids(1), ids(2)
    assert (a != b).any()
    np.testing.assert_array_equal(a, ids(1))
    for x, y in ((a[:-1], a[1:]), (a, b)):
        pairs = np.histogram2d(x // 10, y // 10, bins=10)[0]
        expected = len(x) / 100
        assert abs(((pairs - expected) ** 2 / expected).sum() - 99) < 4 * np.sqrt(2 * 99)
