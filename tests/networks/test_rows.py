"""A part of a batch gets the random numbers that its rows have in the whole batch."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from bc.ibc import samplers
from common_utils.data_aug import RandomShiftsAug
from common_utils.ibrl_utils import TruncatedNormal
from common_utils.rows import Rows, computing, drawn
from networks import fast
from networks.dropout import FastDropout, RowDropout
from networks.mlp import EnsembleMLP, _MultiLinear, build_fc
from rl.selection import select_candidate

TOTAL, PARTS = 8, (Rows(0, 3, 8), Rows(3, 5, 8))
Case = Callable[[slice], torch.Tensor]


def numbers(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(3))


class FlatEnergy:
    """All actions are equally good."""

    def logits(self, actions: torch.Tensor) -> torch.Tensor:
        return actions.new_zeros(actions.shape[:2])

    def logits_and_grad(self, actions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.logits(actions), torch.zeros_like(actions)


LOW, HIGH = -torch.ones(2), torch.ones(2)
X, IMAGES = numbers(TOTAL, 33), (100 * numbers(TOTAL, 3, 9, 9)).abs().to(torch.uint8)
ACTIONS, VALUES = numbers(TOTAL, 6, 2).clamp(-1, 1), numbers(TOTAL, 6)
ENERGY, NETWORK = FlatEnergy(), build_fc(33, 40, 3, 2, 1, 0.5)
ENSEMBLE = EnsembleMLP(_MultiLinear(3, 33, 24), nn.Dropout(0.5), nn.ReLU(), _MultiLinear(3, 24, 1))
MEMBERS = numbers(3, 1)


def ensemble_norm_relu(at: slice) -> torch.Tensor:
    x = X[at].expand(3, -1, -1)
    return fast.norm_relu(x, None, MEMBERS, 0.5).transpose(0, 1)


CASES: dict[str, Case] = {
    "shifts": lambda at: RandomShiftsAug(2)(IMAGES[at]),
    "dropout": lambda at: RowDropout(0.5)(X[at]),
    "dropout of frames": lambda at: RowDropout(0.5)(X[at].view(-1, 11)).view(-1, 33),
    "fast dropout": lambda at: FastDropout(0.3)(ACTIONS[at]),
    "norm_relu": lambda at: fast.norm_relu(X[at], None, None, 0.5),
    "norm_relu of candidates": lambda at: fast.norm_relu(VALUES[at].unsqueeze(2), None, None, 0.5),
    "norm_relu of an ensemble": ensemble_norm_relu,
    "perceptron": lambda at: NETWORK(X[at]),
    "ensemble": lambda at: ENSEMBLE(X[at]).transpose(0, 1),
    "uniform": lambda at: samplers.uniform(len(X[at]), 5, LOW, HIGH),
    "dfo": lambda at: (
        samplers.iterative_dfo(ENERGY, ACTIONS[at], LOW, HIGH, samplers.DfoConfig()).actions
    ),
    "langevin": lambda at: samplers.langevin(
        ENERGY, ACTIONS[at], LOW, HIGH, samplers.LangevinConfig(num_iterations=3)
    ),
    "actions": lambda at: TruncatedNormal(0.1 * X[at], 0.1).sample(),
    "soft choice": lambda at: select_candidate(ACTIONS[at], VALUES[at], soft_beta=1.0)[0],
    "epsilon": lambda at: select_candidate(ACTIONS[at], VALUES[at], eps_greedy=0.5)[0],
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("backends", [("cpu", "products", "plain"), ("plain",)])
def test_parts_are_those_of_the_whole(name, backends, monkeypatch):
    monkeypatch.setattr(fast.table, "BACKENDS", backends)
    fast.table.rows.cache_clear()
    try:
        torch.manual_seed(1)
        whole, after = CASES[name](slice(None)), torch.get_rng_state()
        found = []
        for part in PARTS:
            torch.manual_seed(1)
            with computing(part):
                found.append(CASES[name](part.here))
            assert torch.equal(torch.get_rng_state(), after)  # nobody falls behind
    finally:
        fast.table.rows.cache_clear()
    torch.testing.assert_close(torch.cat(found), whole, rtol=1e-6, atol=1e-6)
    torch.manual_seed(2)
    assert not torch.equal(CASES[name](slice(None)), whole)  # something was drawn


def test_gradients_see_the_same_masks():
    """The backward pass draws masks again."""
    torch.manual_seed(1)
    NETWORK(X).sum().backward()
    whole = [p.grad.clone() for p in NETWORK.parameters()]
    NETWORK.zero_grad()
    for part in PARTS:
        torch.manual_seed(1)
        with computing(part):
            NETWORK(X[part.here]).sum().backward()
    for p, want in zip(NETWORK.parameters(), whole, strict=True):
        torch.testing.assert_close(p.grad, want, rtol=1e-4, atol=1e-5)


def test_shares():
    parts = [Rows.of_rank(r, 3, 8) for r in range(3)]
    assert [(p.first, p.num) for p in parts] == [(0, 2), (2, 3), (5, 3)]
    assert parts[1].times(9) == Rows(6, 9, 24) and sum(p.share for p in parts) == 1
    with pytest.raises(ValueError, match="10 numbers on an axis are not those of 3 rows"):
        parts[1].times(10)
    with computing(parts[2]), computing(None):  # a whole batch within
        assert drawn(torch.zeros, (8, 2)).shape == (8, 2)
