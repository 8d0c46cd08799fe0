"""Step sizes of the parts of an agent, and the largest norm of their gradients."""

from __future__ import annotations

import copy

import pytest
import torch

from networks.optim import Adam, descend
from rl.q_agent import QAgent
from tests.rl.agents import make_batch, pixel_agent, state_agent


def test_parts_have_step_sizes_of_their_own() -> None:
    it = pixel_agent(lr=1e-3, actor_lr=1e-5, encoder_lr=1e-4)
    rates = {name: opt.param_groups[0]["lr"] for name, opt in it.optimizers().items()}
    assert rates == {"critic": 1e-3, "actor": 1e-5, "encoder": 1e-4}
    assert {o.param_groups[0]["lr"] for o in pixel_agent(lr=0.5).optimizers().values()} == {0.5}


def moved(it: QAgent, name: str) -> torch.Tensor:
    """The gradient that a part's first step has used: the first moment is a tenth of it."""
    states = it.optimizers()[name].state.values()  # type: ignore[attr-defined]
    return torch.cat([s["exp_avg"].flatten() for s in states]) * 10


@pytest.mark.parametrize("compile", ["off", "default"])
@pytest.mark.parametrize("pixels", [False, True])
def test_gradients_are_clipped_part_by_part(
    pixels: bool, compile: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("networks.graphs.BACKEND", "eager")
    make = pixel_agent if pixels else state_agent
    free, batch = make(compile=compile), make_batch(8, pixels=pixels)
    free.update(batch, 0.1, True)
    limit = 0.5 * float(moved(free, "critic").norm())
    clipped = make(compile=compile, grad_clip=limit)
    clipped.update(batch, 0.1, True)
    before, after = moved(free, "critic"), moved(clipped, "critic")
    torch.testing.assert_close(after, before * (limit / before.norm()), rtol=1e-4, atol=1e-7)


def test_a_clipped_step_is_torchs() -> None:
    net = torch.nn.Linear(3, 2)
    same = copy.deepcopy(net)
    mine, theirs = Adam(net.parameters(), 0.1, clip=0.3), torch.optim.Adam(same.parameters(), 0.1)
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    for _ in range(3):
        descend(net(x).square().sum(), mine)
        theirs.zero_grad()
        same(x).square().sum().backward()
        torch.nn.utils.clip_grad_norm_(same.parameters(), 0.3)
        theirs.step()
    for got, want in zip(net.parameters(), same.parameters(), strict=True):
        torch.testing.assert_close(got, want)
