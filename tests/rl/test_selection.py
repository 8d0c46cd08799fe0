"""The selection rule over candidates, against its definition (paper section 4)."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rl.selection import act_metrics, select_candidate, source_gap, take

ROWS = 40_000


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def numbered(q: torch.Tensor, action_dim: int = 3) -> torch.Tensor:
    """Candidates [B, N, A] whose entries tell row and column, to see what was picked."""
    b, n = q.shape
    rows = torch.arange(b).view(b, 1, 1) + torch.zeros(b, n, action_dim)
    return rows * 100 + torch.arange(n).view(1, n, 1)


def frequencies(index: torch.Tensor, n: int) -> np.ndarray:
    return np.bincount(index.numpy(), minlength=n) / len(index)


def assert_frequencies(index: torch.Tensor, expected: np.ndarray) -> None:
    """Within five standard deviations of a binomial count, for every candidate."""
    expected = np.asarray(expected, float)
    sigma = np.sqrt(expected * (1 - expected) / len(index))
    got = frequencies(index, len(expected))
    assert (np.abs(got - expected) <= 5 * sigma + 1e-12).all(), (got, expected)


@pytest.mark.parametrize("n", [1, 2, 5])
def test_hard_choice_is_the_argmax_of_each_row(n: int) -> None:
    q = torch.randn(50, n, generator=generator())
    actions = numbered(q)
    action, index = select_candidate(actions, q)
    for b in range(50):
        best = int(np.argmax(q[b].numpy()))
        assert index[b] == best
        assert torch.equal(action[b], actions[b, best])
    assert index.dtype == torch.int64
    assert action.shape == (50, 3)


def test_a_tie_goes_to_the_rl_action() -> None:
    q = torch.tensor([[1.0, 1.0], [0.0, 0.0], [-2.0, -2.0]])
    assert select_candidate(numbered(q), q)[1].tolist() == [0, 0, 0]
    many = torch.tensor([[3.0, 3.0, 3.0], [3.0, 1.0, 3.0], [1.0, 3.0, 3.0]])
    assert select_candidate(numbered(many), many)[1].tolist() == [0, 0, 1]


def test_two_candidates_are_ibrl_as_published() -> None:
    def ibrl(rl: np.ndarray, bc: np.ndarray, q_rl: float, q_bc: float) -> np.ndarray:
        return bc if q_bc > q_rl else rl

    gen = generator(1)
    rl, bc = torch.randn(64, 4, generator=gen), torch.randn(64, 4, generator=gen)
    q = torch.randn(64, 2, generator=gen).round(decimals=0)  # ties happen
    assert (q[:, 0] == q[:, 1]).any()
    action, _ = select_candidate(torch.stack([rl, bc], 1), q)
    for b in range(64):
        want = ibrl(rl[b].numpy(), bc[b].numpy(), float(q[b, 0]), float(q[b, 1]))
        np.testing.assert_array_equal(action[b].numpy(), want)


@pytest.mark.parametrize("beta", [0.0, 0.5, 10.0])
def test_soft_choice_of_two_follows_the_logistic_of_their_difference(beta: float) -> None:
    q = torch.tensor([[0.3, 0.1]]).expand(ROWS, 2)
    _, index = select_candidate(numbered(q), q, soft_beta=beta, generator=generator())
    p_bc = 1 / (1 + np.exp(-beta * (0.1 - 0.3)))
    assert_frequencies(index, np.array([1 - p_bc, p_bc]))


def test_soft_choice_of_many_follows_the_softmax_and_is_drawn_per_row() -> None:
    values, beta = np.array([0.2, -0.1, 0.35, 0.0]), 4.0
    q = torch.tensor(values, dtype=torch.float32).expand(ROWS, 4)
    action, index = select_candidate(numbered(q), q, soft_beta=beta, generator=generator())
    weight = np.exp(beta * values)
    assert_frequencies(index, weight / weight.sum())
    assert torch.equal(action, take(numbered(q), index))


@pytest.mark.parametrize("eps", [0.0, 0.3, 0.9])
@pytest.mark.parametrize("n", [2, 4])
def test_eps_is_the_probability_of_following_the_rule(eps: float, n: int) -> None:
    q = torch.zeros(ROWS, n)
    q[:, n - 1] = 1.0
    _, index = select_candidate(numbered(q), q, eps_greedy=eps, generator=generator())
    expected = np.full(n, (1 - eps) / n)  # a uniform draw may hit the best one as well
    expected[n - 1] += eps
    assert_frequencies(index, expected)


def test_the_hard_greedy_choice_draws_no_random_number() -> None:
    q = torch.randn(8, 3, generator=generator())
    gen, state = generator(5), generator(5).get_state()
    global_state = torch.get_rng_state()
    select_candidate(numbered(q), q, generator=gen)
    assert torch.equal(gen.get_state(), state)
    assert torch.equal(torch.get_rng_state(), global_state)


def test_randomness_comes_from_the_given_generator_alone() -> None:
    q = torch.randn(500, 3, generator=generator())
    global_state = torch.get_rng_state()
    options = {"soft_beta": 1.0, "eps_greedy": 0.5}
    a = select_candidate(numbered(q), q, **options, generator=generator(7))[1]
    b = select_candidate(numbered(q), q, **options, generator=generator(7))[1]
    c = select_candidate(numbered(q), q, **options, generator=generator(8))[1]
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    assert torch.equal(torch.get_rng_state(), global_state)


@pytest.mark.parametrize(
    "actions, q",
    [((4, 2), (4, 2)), ((4, 2, 3), (4, 3)), ((4, 2, 3), (3, 2)), ((4, 2, 3), (4, 2, 1))],
)
def test_misfitting_shapes_are_refused(actions: tuple[int, ...], q: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"\[B, N, A\]"):
        select_candidate(torch.zeros(actions), torch.zeros(q))


def test_take_picks_row_by_row() -> None:
    values = torch.arange(24).view(2, 3, 4)
    index = torch.tensor([2, 0])
    assert torch.equal(take(values, index), torch.stack([values[0, 2], values[1, 0]]))
    assert take(values[..., 0], index).tolist() == [8, 12]


def test_a_soft_choice_is_multinomials_to_the_bit() -> None:
    for seed in range(50):
        q = torch.randn(9, 2 + seed % 3, generator=generator(seed))
        gen, other = generator(seed), generator(seed)
        index = select_candidate(numbered(q), q, soft_beta=10.0, generator=gen)[1]
        drawn = torch.multinomial(torch.softmax(10.0 * q, 1), 1, generator=other)
        assert torch.equal(index, drawn.squeeze(1))
        assert torch.equal(gen.get_state(), other.get_state())


def test_the_gap_is_between_the_two_best_sources() -> None:
    # the agent's two, then two proposals of each of two policies: 1.0 and 4.0 are the best sources
    q = torch.tensor([[0.5, 1.0, 3.5, 4.0, 0.0, -1.0], [2.0, 7.0, 0.0, 0.0, 9.0, 8.0]])
    assert source_gap(q, 2, 2)["actor/gap"] == ((4.0 - 1.0) + (9.0 - 7.0)) / 2
    assert source_gap(q[:, 2:], 0, 2)["actor/gap"] == ((4.0 - 0.0) + (9.0 - 0.0)) / 2
    assert source_gap(q[:, 2:], 0, 1) == {} == source_gap(q[:, :2], 2, 1), "one source has none"


def test_shares_of_several_policies() -> None:
    # the RL action, two proposals of the first policy, two of the second
    q = torch.tensor([[9.0, 0, 0, 0, 0], [0, 9, 0, 0, 0], [0, 0, 9, 0, 0], [0, 0, 0, 0, 9]])
    candidates = numbered(q)
    index = select_candidate(candidates, q)[1]
    metrics = act_metrics(candidates, q, index, True, policies=2)
    assert metrics == {"actor/bc_eval": 0.75, "actor/bc1_eval": 0.5, "actor/bc2_eval": 0.25}
    exploring = act_metrics(candidates, q, index, False, policies=2)
    assert exploring["actor/bc1_train"] == 0.5 and exploring["actor/bc2_train"] == 0.25
    assert set(act_metrics(candidates, q, index, True)) == {"actor/bc_eval"}
