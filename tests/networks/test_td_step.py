"""A critic's whole step in one call against the same step in parts, bit for bit."""

from __future__ import annotations

import copy

import pytest
import torch

from common_utils import kernels
from networks import fast
from networks.fast import choice, table
from networks.optim import Adam, soft_update_params
from rl.critic import MultiFcQ, MultiFcQConfig

S, A, ROWS, TAU = 11, 3, 70, 0.05
CASES = [
    {},
    {"layer_norm": 1},
    {"layer_norm": 1, "bias_per_unit": 1},
    {"num_q": 1, "num_k": 1, "num_layer": 1},
    {"num_q": 2, "hidden_dim": 300, "bias_per_unit": 1},
]


@pytest.fixture(autouse=True)
def by_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    if kernels.isa() == "base":
        pytest.skip("these kernels need AVX2 or better")
    monkeypatch.setattr(choice, "perceptron", lambda width: "kernels")


class Learner:
    """A critic, its optimiser and its target."""

    def __init__(self, **options: float) -> None:
        torch.manual_seed(3)
        cfg = MultiFcQConfig(**{"hidden_dim": 40, "num_q": 5, **options})  # type: ignore[arg-type]
        self.critic = MultiFcQ((S,), A, cfg)
        self.target = copy.deepcopy(self.critic).requires_grad_(False)
        self.opt = Adam(self.critic.parameters(), 1e-3)

    def in_parts(self, state: torch.Tensor, action: torch.Tensor, y: torch.Tensor) -> float:
        q = self.critic({"state": state}, action)
        loss = (q - y.unsqueeze(-1)).square().sum(dim=-1).mean()
        self.opt.zero_grad()
        loss.backward()
        self.opt.step()
        mine, theirs = list(self.critic.parameters()), list(self.target.parameters())
        soft_update_params(mine, theirs, TAU)
        return loss.item()

    def at_once(self, state: torch.Tensor, action: torch.Tensor, y: torch.Tensor) -> float | None:
        args = {"state": state}, action, y, self.opt, self.target, TAU
        loss = self.critic.td_step(*args)
        return None if loss is None else loss.item()

    def everything(self) -> list[torch.Tensor]:
        moments = [v for s in self.opt.state_dict()["state"].values() for v in s.values()]
        return [*self.critic.state_dict().values(), *self.target.state_dict().values(), *moments]


def batches(num: int, rows: int = ROWS) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    rng = torch.Generator().manual_seed(0)
    return [
        (
            torch.randn(rows, S, generator=rng),
            torch.randn(rows, A, generator=rng),
            torch.randn(rows, generator=rng),
        )
        for _ in range(num)
    ]


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("options", CASES, ids=str)
def test_bits_are_those_of_the_step_in_parts(options: dict[str, float], threads: int) -> None:
    one, parts = Learner(**options), Learner(**options)
    try:
        fast.use_threads(threads)
        for i, batch in enumerate([*batches(4), *batches(3, rows=200)]):
            expected = parts.in_parts(*batch)
            # torch makes Adam's state in the first step
            loss = one.in_parts(*batch) if i == 0 else one.at_once(*batch)
            assert loss == pytest.approx(expected, rel=1e-5)
    finally:
        fast.use_threads(0)
    for mine, theirs in zip(one.everything(), parts.everything(), strict=True):
        assert torch.equal(mine, theirs)


def test_a_learner_that_was_loaded_goes_on() -> None:
    """Weights and moments of other tensors under the same names: nothing is remembered."""
    old, new, parts = Learner(), Learner(), Learner()
    seen = batches(6)
    for batch in seen[:3]:
        parts.in_parts(*batch)
        old.in_parts(*batch)
    new.in_parts(*seen[0])
    new.at_once(*seen[5])
    new.critic.load_state_dict(old.critic.state_dict())
    new.target.load_state_dict(old.target.state_dict())
    new.opt.load_state_dict(old.opt.state_dict())
    for batch in seen[3:]:
        parts.in_parts(*batch)
        assert new.at_once(*batch) is not None
    for mine, theirs in zip(new.everything(), parts.everything(), strict=True):
        assert torch.equal(mine, theirs)


def test_weights_are_known_to_have_changed() -> None:
    """A graph made before the step cannot be run back afterwards with other weights."""
    learner, (first, second) = Learner(), batches(2)
    learner.in_parts(*first)
    before = learner.critic({"state": first[0]}, first[1]).sum()
    assert learner.at_once(*second) is not None
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        before.backward()


def test_what_it_refuses() -> None:
    (batch,) = batches(1)
    state, action, y = batch
    assert Learner().at_once(*batch) is None  # Adam's state is not there yet
    for options in ({"append_action": 1}, {"dropout": 0.1}):
        learner = Learner(**options)
        learner.in_parts(*batch)
        assert learner.at_once(*batch) is None
    learner = Learner()
    learner.in_parts(*batch)
    assert learner.at_once(state.requires_grad_(), action, y) is None
    assert learner.at_once(state.detach(), action, torch.stack([y, y], dim=1)[:, 0]) is None
    assert learner.at_once(state.detach(), action, y[:1]) is None
    hook = learner.opt.register_step_pre_hook(lambda *_: None)  # to see the gradients, say
    assert learner.at_once(state.detach(), action, y) is None
    hook.remove()
    assert learner.at_once(state.detach(), action, y) is not None
    before = [t.clone() for t in learner.everything()]
    learner.critic.double()
    assert learner.at_once(state.detach(), action, y) is None
    assert all(
        torch.equal(a, b.to(a.dtype)) for a, b in zip(before, learner.everything(), strict=True)
    )


def test_a_kernel_does_it() -> None:
    (batch,) = batches(1)
    learner = Learner(layer_norm=1)
    learner.in_parts(*batch)
    assert learner.at_once(*batch) is not None
    assert [name for name, _ in table.rows()["td_step"]] == ["cpu"]
