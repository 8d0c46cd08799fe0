"""Draws by probability: the numbers of ``torch.multinomial``, without its reads."""

from __future__ import annotations

import pytest
import torch

from networks import categorical


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(3)


@pytest.mark.parametrize("num", [1, 2, 7])
def test_draws_are_those_of_multinomial(num: int) -> None:
    probs = torch.softmax(3 * torch.randn(500, 40, generator=generator()), dim=1)
    mine, theirs = generator(), generator()
    got = categorical.draw(probs, num, mine)
    want = torch.multinomial(probs, num, replacement=True, generator=theirs)
    assert got.dtype == torch.int64 and torch.equal(got, want)
    assert torch.equal(mine.get_state(), theirs.get_state())


@pytest.mark.parametrize("num", [1, 20])
def test_what_has_no_probability_is_never_drawn(num: int) -> None:
    probs = torch.tensor([[0.0, 2.0, 0.0, 1.0, 0.0]]).expand(2000, -1)
    got = categorical.draw(probs, num, generator())
    assert set(got.flatten().tolist()) == {1, 3}
    assert (got == 1).float().mean().item() == pytest.approx(2 / 3, abs=0.04)
