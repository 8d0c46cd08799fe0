"""The fast forms of the energy network against plain torch in float64, on every build."""

from __future__ import annotations

import copy
import time

import pytest
import torch

from bc.ibc.ebm_policy import EbmPolicy
from common_utils import ebm_kernels
from common_utils.errors import UserError
from networks import graphs
from networks.ibc import energy, fused
from networks.ibc.mlp import MLPEBM, MLPConfig

KINDS = ["MLPDropout", "ResNetOrig", "ResNetPreActivation"]
CASES = [(kind, *size) for kind in KINDS for size in ((3, 2), (33, 4), (128, 8), (256, 2))]
BUILDS = [name for name, _ in ebm_kernels.builds()]
PRECISION = dict(ebm_kernels.builds())
FLOAT32 = ["off", *(name for name in BUILDS if PRECISION[name] == "float32")]
BFLOAT16 = ["off", *(name for name in BUILDS if PRECISION[name] == "bfloat16")]


def make(
    kind: str, width: int, depth: int, dense: str = "regular", *, steady: bool = False
) -> MLPEBM:
    """A network with activations of order one; ``steady``: hardly a unit is near its kink."""
    torch.manual_seed(width * 31 + depth)
    cfg = MLPConfig(width=width, depth=depth, rate=0.0, layers=kind, dense_layer_type=dense)
    net = MLPEBM(5, 3, cfg)
    sign = net.trunk.first.bias.detach().sign()  # everywhere, or skips would cancel
    with torch.no_grad():
        for p in net.parameters():
            if p.dim() == 2:
                p.mul_((2 if steady else 20) * (2 / p.size(-1)) ** 0.5)
            elif steady and p.numel() == width:
                p.copy_(10 * sign)
            else:
                p.mul_(4)
    return net.eval()


def inputs(net: MLPEBM, b: int = 7, n: int = 9) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(b, net.obs_dim), 2 * torch.rand(b, n, net.action_dim) - 1


def exact(
    net: MLPEBM, obs: torch.Tensor, actions: torch.Tensor
) -> tuple[MLPEBM, torch.Tensor, torch.Tensor]:
    """The network in float64, f and df/da with a graph."""
    net = copy.deepcopy(net).double()
    actions = actions.double().requires_grad_()
    f = net(obs.double(), actions)
    (grad,) = torch.autograd.grad(f.sum(), actions, create_graph=True)
    return net, f, grad


def check(value: torch.Tensor | None, want: torch.Tensor | None, tolerance: float) -> None:
    """Equal up to ``tolerance`` times the norm."""
    assert value is not None and want is not None
    error = (value.double() - want.double()).norm()
    assert error <= tolerance * want.double().norm().clamp(min=1e-3)


def check_network(net: MLPEBM, precision: str, tolerance: float, b: int = 7, n: int = 9) -> None:
    """Values, action gradients and gradients of all parameters, with and without penalty."""
    obs, actions = inputs(net, b, n)
    slope, u = torch.randn(b, n), torch.randn(b, n, net.action_dim)
    want_net, want, want_grad = exact(net, obs, actions)

    encoded = net.encode(obs)
    check(energy.Prepared(net, precision).logits(encoded, actions), want, tolerance)
    ready = energy.Prepared(net, precision)
    value, grad = ready.logits_and_action_grad(encoded, actions)
    assert not value.requires_grad and not grad.requires_grad
    check(value, want, tolerance)
    check(grad, want_grad, tolerance)

    loss = (want * slope.double()).sum()
    loss.backward(retain_graph=True)
    value = energy.fast_score(net, encoded, actions, precision)
    check(value, want, tolerance)
    (value * slope).sum().backward()
    for p, q in zip(net.parameters(), want_net.parameters(), strict=True):
        check(p.grad, q.grad, 5 * tolerance)

    net.zero_grad()
    want_net.zero_grad()
    (loss + (want_grad * u.double()).sum()).backward()
    value, grad = energy.fast_score_and_action_grad(net, net.encode(obs), actions, precision)
    check(value, want, tolerance)
    check(grad, want_grad, tolerance)
    ((value * slope).sum() + (grad * u).sum()).backward()
    for p, q in zip(net.parameters(), want_net.parameters(), strict=True):
        check(p.grad, q.grad, 5 * tolerance)


@pytest.mark.parametrize("build", FLOAT32)
@pytest.mark.parametrize("kind, width, depth", CASES)
def test_float32(
    kind: str, width: int, depth: int, build: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IBC_KERNELS", build)
    check_network(make(kind, width, depth), "float32", 3e-6)


@pytest.mark.parametrize("build", BFLOAT16)
@pytest.mark.parametrize("kind, width, depth", CASES)
def test_bfloat16(
    kind: str, width: int, depth: int, build: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IBC_KERNELS", build)
    check_network(make(kind, width, depth, steady=True), "bfloat16", 0.02)


@pytest.mark.parametrize("kind, width, depth", CASES)
def test_bfloat16x3(kind: str, width: int, depth: int) -> None:
    check_network(make(kind, width, depth, steady=True), "bfloat16x3", 3e-5)


@pytest.mark.parametrize("dense", ["regular", "spectral_norm"])
@pytest.mark.parametrize("b, n", [(1, 700), (300, 1), (20, 30)])
def test_many_rows_and_spectral_norm(b: int, n: int, dense: str) -> None:
    """More rows than a block has; observations that begin within a block."""
    check_network(make("ResNetPreActivation", 40, 4, dense), "float32", 3e-6, b, n)
    check_network(make("ResNetPreActivation", 40, 4, dense), "bfloat16x3", 2e-5, b, n)
    if dense == "regular":
        check_network(
            make("ResNetPreActivation", 40, 4, dense, steady=True), "bfloat16", 0.02, b, n
        )


@pytest.mark.parametrize("build", BUILDS)
def test_results_do_not_depend_on_threads(build: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IBC_KERNELS", build)
    precision = PRECISION[build]
    net = make("ResNetPreActivation", 64, 4)
    obs, actions = inputs(net, 30, 41)
    before, runs = torch.get_num_threads(), []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            encoded = net.encode(obs).detach()
            out = [*energy.Prepared(net, precision).logits_and_action_grad(encoded, actions)]
            f = energy.fast_score(net, encoded, actions, precision)
            fast = [p for name, p in net.named_parameters() if "w1" in name]
            runs.append([*out, *torch.autograd.grad(f.logsumexp(1).sum(), fast)])
    finally:
        torch.set_num_threads(before)
    for one, three in zip(*runs, strict=True):
        assert torch.equal(one, three)


def seconds_of(ready: energy.Prepared, encoded: torch.Tensor, actions: torch.Tensor) -> float:
    before = time.process_time()
    ready.logits_and_action_grad(encoded, actions)
    return time.process_time() - before


@pytest.mark.parametrize("build", ["amx", "amx_x3", "v4_bf16"])
def test_what_is_offered_as_faster_is(build: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compilers have put the sums of products into memory: half the speed of float32."""
    if build not in BUILDS:
        return  # nothing is offered on this CPU
    net = make("ResNetPreActivation", 256, 2)
    obs, actions = inputs(net, 64, 32)
    encoded = net.encode(obs).detach()
    plain = energy.Prepared(net, "float32")
    monkeypatch.setenv("IBC_KERNELS", build)
    fast = energy.Prepared(net, PRECISION[build])
    times = [[seconds_of(x, encoded, actions) for x in (plain, fast)] for _ in range(20)]
    float32, bfloat16 = (min(column) for column in zip(*times, strict=True))
    assert float32 > 1.2 * bfloat16


def test_what_the_kernels_do_not_know_runs_in_torch() -> None:
    for change in ({"activation": "swish"}, {"normalizer": "Layer"}, {"depth": 0}):
        cfg = MLPConfig(**({"width": 16, "depth": 2, "rate": 0.0} | change))
        net = MLPEBM(5, 3, cfg).eval()
        obs, actions = inputs(net)
        want = net(obs, actions)
        encoded = net.encode(obs)
        torch.testing.assert_close(energy.Prepared(net).logits(encoded, actions), want)
        f, grad = energy.Prepared(net).logits_and_action_grad(encoded, actions)
        assert not f.requires_grad
        torch.testing.assert_close(energy.fast_score(net, encoded, actions), want)
        f, again = energy.fast_score_and_action_grad(net, encoded, actions)
        torch.testing.assert_close(grad, again)
        again.sum().backward()


def test_without_the_module(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "ebm_kernels", None)
    fused._builds.cache_clear()
    try:
        assert fused.choose("float32", 64, 1) is None
        check_network(make("ResNetPreActivation", 33, 4), "float32", 3e-6)
    finally:
        fused._builds.cache_clear()


def test_nan_comes_through() -> None:
    net = make("ResNetPreActivation", 64, 4)
    obs, actions = inputs(net)
    actions[2, 3, 0] = float("nan")
    for precision in ("float32", "bfloat16x3", "bfloat16"):
        f, grad = energy.Prepared(net, precision).logits_and_action_grad(net.encode(obs), actions)
        assert f.isnan().nonzero().tolist() == [[2, 3]]
        assert not grad[0].isnan().any()


def test_mistakes_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    net = make("ResNetPreActivation", 32, 2)
    obs, actions = inputs(net)
    with pytest.raises(ValueError, match="precision is 'half'"):
        energy.Prepared(net, "half").logits(net.encode(obs), actions)
    monkeypatch.setenv("IBC_KERNELS", "nonsense")
    with pytest.raises(UserError, match="^IBC_KERNELS: 'nonsense', expected one of auto, off"):
        energy.Prepared(net)
    with pytest.raises(UserError, match="IBC_KERNELS"):  # before a run has written anything
        EbmPolicy("state", (4,), 1, 2)


def test_no_second_derivative_by_accident() -> None:
    net = make("ResNetPreActivation", 32, 2)
    obs, actions = inputs(net)
    f = energy.fast_score(net, net.encode(obs), actions)
    weight = net.trunk.blocks[0].w1.weight
    (grad,) = torch.autograd.grad(f.square().sum(), weight, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_an_evaluation_is_one_graph(
    kind: str, precision: energy.Precision, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the results of the torch passes, for several numbers of actions and other weights."""
    monkeypatch.setattr(graphs, "BACKEND", "aot_eager")
    monkeypatch.setenv("IBC_KERNELS", "off")
    energy._graph.cache_clear()
    torch.manual_seed(0)
    for _ in range(2):
        net = make(kind, 24, 4)
        for num in (5, 9):
            obs, actions = inputs(net, 3, num)
            encoded = net.encode(obs)
            one = energy.Prepared(net, precision, "default")
            plain = energy.Prepared(net, precision)
            check(one.logits(encoded, actions), plain.logits(encoded, actions), 1e-6)
            mine = one.logits_and_action_grad(encoded, actions)
            for a, b in zip(mine, plain.logits_and_action_grad(encoded, actions), strict=True):
                check(a, b, 1e-6)
    torch._dynamo.reset()
    energy._graph.cache_clear()
