"""Whole perceptrons by the kernels, against plain torch in float64."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import nn

from networks import fast
from networks.fast import table
from networks.fast.cpu import mlp, module
from networks.mlp import MLP, Linear
from rl.critic import MultiFcQ, MultiFcQConfig


@pytest.fixture(autouse=True)
def with_kernels(isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their matrix products, on every instruction set."""
    monkeypatch.setattr(module, "has_gemm", lambda: True)
    torch.manual_seed(0)


def network(dims: tuple[int, ...], norm: bool, end: str) -> MLP:
    layers: list[nn.Module] = []
    for i, o in pairwise(dims[:-1]):
        layers += [Linear(i, o)] + ([nn.LayerNorm(o)] if norm else []) + [nn.ReLU()]
    if end != "hidden":
        layers.append(Linear(dims[-2], dims[-1]))
    return MLP(*layers, *([nn.Tanh()] if end == "tanh" else []))


def gradients(y: torch.Tensor, dy: torch.Tensor, inputs: list[torch.Tensor]) -> list[torch.Tensor]:
    return list(torch.autograd.grad(y, inputs, dy.to(y.dtype), retain_graph=True))


@pytest.mark.parametrize("shape", [(1, 10, 40, 1), (4, 300, 64, 50, 7), (33, 40, 70, 30, 9)])
@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize("end", ["linear", "hidden", "tanh"])
def test_perceptrons_are_torchs(shape: tuple[int, ...], norm: bool, end: str) -> None:
    net = network(shape[1:], norm, end)
    exact_net = nn.Sequential(*network(shape[1:], norm, end)).double()
    exact_net.load_state_dict(net.state_dict())
    x = torch.randn(shape[0], shape[1], requires_grad=True)
    exact_x = x.detach().double().requires_grad_()
    y, exact = net(x), exact_net(exact_x)
    torch.testing.assert_close(y.double(), exact, rtol=1e-4, atol=1e-5)
    dy = torch.randn_like(y)
    for a, b in zip(
        gradients(y, dy, [x, *net.parameters()]),
        gradients(exact, dy, [exact_x, *exact_net.parameters()]),
        strict=True,
    ):
        torch.testing.assert_close(a.double(), b, rtol=1e-3, atol=1e-4)
    with torch.no_grad():
        assert torch.equal(net(x), y)


def ensemble(norm: int, per_unit: int = 0) -> MultiFcQ:
    cfg = MultiFcQConfig(
        num_q=4, num_layer=2, hidden_dim=50, layer_norm=norm, bias_per_unit=per_unit
    )
    critic = MultiFcQ((11,), 3, cfg)
    for p in critic.parameters():
        nn.init.normal_(p, std=0.3)
    return critic


@pytest.mark.parametrize("norm", [0, 1])
@pytest.mark.parametrize("per_unit", [0, 1])
@pytest.mark.parametrize("members", [None, [2], [3, 0]])
def test_ensembles_are_torchs(norm: int, per_unit: int, members: list[int] | None) -> None:
    critic = ensemble(norm, per_unit)
    exact_critic = ensemble(norm, per_unit).double()
    exact_critic.load_state_dict(critic.state_dict())
    state, action = torch.randn(70, 11), torch.randn(70, 2, 3, requires_grad=True)
    exact_action = action.detach().double().requires_grad_()
    q = critic.q({"state": state}, action, members)
    exact = exact_critic.q({"state": state.double()}, exact_action, members)
    torch.testing.assert_close(q.double(), exact, rtol=1e-4, atol=1e-4)
    dq = torch.randn_like(q)
    for a, b in zip(
        gradients(q, dq, [action, *critic.parameters()]),
        gradients(exact, dq, [exact_action, *exact_critic.parameters()]),
        strict=True,
    ):
        torch.testing.assert_close(a.double(), b, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("norm", [0, 1])
def test_gradient_of_the_smallest_member(norm: int) -> None:
    critic = ensemble(norm).requires_grad_(False)
    feats, action = {"state": torch.randn(90, 11)}, torch.randn(90, 3, requires_grad=True)
    q, plain = critic.min_q(feats, action), critic(feats, action).min(dim=-1).values
    assert type(q.grad_fn).__name__ == "_MinMemberBackward"
    assert torch.equal(q, plain)
    dq = torch.randn(90)
    torch.testing.assert_close(gradients(q, dq, [action]), gradients(plain, dq, [action]))


@pytest.mark.parametrize("num_q", [1, 2, 5])
@pytest.mark.parametrize("rows", [100, 300])
@pytest.mark.parametrize("layer_norm", [0, 1])
def test_results_depend_neither_on_threads_nor_on_other_rows(
    num_q: int, rows: int, layer_norm: int
) -> None:
    cfg = MultiFcQConfig(
        num_q=num_q, num_k=1, hidden_dim=192, layer_norm=layer_norm, bias_per_unit=1, dropout=0.2
    )
    critic = MultiFcQ((40,), 8, cfg)
    state, action = torch.randn(rows, 40), torch.randn(rows, 8, requires_grad=True)

    def run(threads: int) -> list[torch.Tensor]:
        fast.use_threads(threads)
        critic.train()
        torch.manual_seed(3)  # of the dropout
        q = critic({"state": state}, action)
        params = list(critic.parameters())
        dq = torch.linspace(-1, 1, rows).unsqueeze(1).expand_as(q)
        weights_only = gradients(q, dq, params)  # takes the members one by one
        all_of_it = gradients(q, dq, [action, *params])
        critic.eval().requires_grad_(False)
        least = critic.min_q({"state": state}, action)
        picked = gradients(least, dq[:, 0], [action])
        critic.requires_grad_(True)
        return [q, *weights_only, *all_of_it, least, *picked]

    try:
        one = run(1)
        for threads in (2, 3) * 5:  # a race need not show the first time
            assert all(torch.equal(a, b) for a, b in zip(one, run(threads), strict=True))
    finally:
        fast.use_threads(0)
    critic.eval()
    part = critic({"state": state[50:90]}, action[50:90])
    assert torch.equal(part, critic({"state": state}, action)[50:90])


FORK = """
import os, torch
from networks import fast
from rl.critic import MultiFcQ, MultiFcQConfig
critic = MultiFcQ((40,), 8, MultiFcQConfig(num_q=4, hidden_dim=192))
state, action = torch.randn(200, 40), torch.randn(200, 8)
fast.use_threads(2)
q = critic({"state": state}, action)
child = os.fork()
if child == 0:
    os._exit(0 if torch.equal(critic({"state": state}, action), q) else 1)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_a_forked_child_has_threads_of_its_own() -> None:
    # in a small process: this one is too large to be forked where memory is short
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-c", FORK], cwd=root, capture_output=True, text=True, timeout=120
    )
    assert (done.stdout, done.returncode) == ("0\n", 0), done.stderr


def test_threads_are_a_count() -> None:
    assert fast.threads() == torch.get_num_threads()
    with pytest.raises(ValueError, match="-1, expected 0 or more"):
        fast.use_threads(-1)


def test_dropout_is_norm_relus() -> None:
    net = MLP(Linear(20, 30), nn.LayerNorm(30), nn.Dropout(0.5), nn.ReLU())
    x = torch.randn(50, 20)
    torch.manual_seed(7)
    y = net(x)
    torch.manual_seed(7)
    torch.testing.assert_close(y, fast.norm_relu(net[0](x), net[1], p=0.5))


def test_a_second_derivative_is_refused() -> None:
    net, x = network((8, 8, 1), norm=False, end="linear"), torch.randn(3, 8, requires_grad=True)
    (dx,) = torch.autograd.grad(net(x).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiate twice"):
        dx.sum().backward()


def test_weights_that_were_replaced_moved_or_changed_are_those_that_count() -> None:
    """Operands that were named before are used again, for the same weights only."""
    net = network((6, 12, 12, 3), True, "linear").eval()
    x = torch.randn(5, 6)

    def check() -> None:
        with torch.no_grad():
            torch.testing.assert_close(net(x), nn.Sequential(*net)(x), rtol=1e-4, atol=1e-5)

    def replace() -> None:
        net[0].weight = nn.Parameter(torch.randn(12, 6))
        net[1].bias = nn.Parameter(torch.randn(12))

    def move() -> None:
        net[3].weight.data = torch.randn(12, 12)
        net.double().float()

    def load() -> None:
        net.load_state_dict({k: torch.randn_like(v) for k, v in net.state_dict().items()})

    def widen() -> None:  # in the memory that is freed, if the allocator likes
        net[4], net[6] = nn.LayerNorm(24), Linear(24, 3)
        net[3] = Linear(12, 24)

    def change_eps() -> None:
        net[4].eps = 0.5

    def drop_bias() -> None:
        net[0].bias = None

    check()
    for change in (replace, move, load, widen, change_eps, drop_bias):
        before = net(x)
        change()
        check()
        assert not torch.allclose(net(x), before), change.__name__


def test_named_operands_are_used_again_but_not_with_dropout() -> None:
    net = network((6, 12, 3), False, "linear")
    x = torch.randn(400, 6)
    assert torch.equal(net(x), net(x))
    missed = mlp._known.cache_info().misses
    assert torch.equal(net(x), net(x)) and mlp._known.cache_info().misses == missed
    dropping = MLP(net[0], nn.Dropout(0.5), nn.ReLU(), net[2])
    assert not torch.equal(dropping(x), dropping(x))  # each call with a mask of its own


def test_back_ends_are_asked_once_per_perceptron(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    name, kernel = table.rows()["perceptron"][0]

    def takes(x: torch.Tensor, layers: Sequence[fast.Layer], members: Sequence[int] | None) -> bool:
        asked.append(len(layers))
        return kernel.takes(x, layers, members)

    rows = [(name, table.Kernel(takes, kernel.run)), *table.rows()["perceptron"][1:]]
    monkeypatch.setitem(table.rows(), "perceptron", rows)
    net = network((6, 12, 12, 3), True, "tanh")
    net(torch.randn(5, 6))
    assert asked == [3]
    net.double()(torch.randn(5, 6).double())  # refused: then part by part
    assert asked == [3, 3]
