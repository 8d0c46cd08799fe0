"""The fast forms against plain torch: values, gradients, dropout, threads, both matrix products."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from common_utils.errors import UserError
from networks import fast
from networks.fast import choice, process, products
from networks.fast.cpu import module
from networks.fast.layer import Layer
from networks.mlp import MLP, EnsembleMLP, Linear, _MultiLinear
from networks.spatial import SpatialEmb
from rl.critic import MultiFcQ, MultiFcQConfig


@pytest.fixture(params=["mkl", "onednn", "kernels"])
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("IBRL_GEMM", request.param)
    monkeypatch.setattr(products, "_MIN_GEMM_WIDTH", 1)  # these tests are small
    choice.use(choice.named())
    yield request.param
    choice.use(None)


def leaf(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, requires_grad=True)


def grads(y: torch.Tensor, dy: torch.Tensor, *inputs: torch.Tensor) -> list[torch.Tensor]:
    return list(torch.autograd.grad(y, inputs, dy.to(y.dtype), retain_graph=True))


def layer_norm(width: int) -> nn.LayerNorm:
    norm = nn.LayerNorm(width)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    return norm


def in_double(norm: nn.LayerNorm | None) -> nn.LayerNorm | None:
    if norm is None:
        return None
    copy = nn.LayerNorm(norm.normalized_shape[0], eps=norm.eps).double()
    copy.load_state_dict(norm.state_dict())
    return copy


@pytest.mark.parametrize("width", [1, 7, 64, 250])
@pytest.mark.parametrize("bias_kind", ["none", "scalar", "unit"])
@pytest.mark.parametrize("normed", [True, False])
def test_norm_relu_is_torchs(isa: str, width: int, bias_kind: str, normed: bool) -> None:
    torch.manual_seed(width)
    members, rows = 3, 5
    x, dy = leaf(members, rows, width), torch.randn(members, rows, width)
    bias = {"none": None, "scalar": leaf(members, 1), "unit": leaf(members, width)}[bias_kind]
    norm = layer_norm(width) if normed else None
    inputs = [x] + ([bias] if bias is not None else [])
    exact_inputs = [t.detach().double().requires_grad_() for t in inputs]
    exact_norm = in_double(norm)

    y = fast.norm_relu(x, norm, bias)
    assert type(y.grad_fn).__name__ == "_NormReluBackward"
    exact = fast.norm_relu(
        exact_inputs[0], exact_norm, exact_inputs[1] if bias_kind != "none" else None
    )
    params = [] if norm is None else list(norm.parameters())
    exact_params = [] if exact_norm is None else list(exact_norm.parameters())
    torch.testing.assert_close(y.double(), exact, rtol=1e-4, atol=1e-5)
    # a width of 1 has no spread: its gradient is rounding times 1 / sqrt(eps)
    atol = 1e-2 if width == 1 else 1e-4
    for a, b in zip(
        grads(y, dy, *inputs, *params),
        grads(exact, dy, *exact_inputs, *exact_params),
        strict=True,
    ):
        torch.testing.assert_close(a.double(), b, rtol=1e-3, atol=atol)
    with torch.no_grad():
        torch.testing.assert_close(fast.norm_relu(x, norm, bias), y)


@pytest.mark.parametrize("num", [1, 3])
@pytest.mark.parametrize("width", [5, 64, 130])
def test_spatial_embedding_is_torchs(isa: str, num: int, width: int) -> None:
    torch.manual_seed(num)
    batch, rows = 9, 6
    shared, action = leaf(batch, rows, width), leaf(batch, num, width)
    weight, norm = leaf(1, rows, width), layer_norm(width)
    inputs = [shared, action, weight]
    exact_inputs = [t.detach().double().requires_grad_() for t in inputs]
    exact_norm = in_double(norm)
    assert exact_norm is not None

    z = fast.spatial_embed(shared, action, norm, weight)
    exact = fast.spatial_embed(exact_inputs[0], exact_inputs[1], exact_norm, exact_inputs[2])
    torch.testing.assert_close(z.double(), exact, rtol=1e-4, atol=1e-4)
    dz = torch.randn_like(z)
    for a, b in zip(
        grads(z, dz, *inputs, *norm.parameters()),
        grads(exact, dz, *exact_inputs, *exact_norm.parameters()),
        strict=True,
    ):
        torch.testing.assert_close(a.double(), b, rtol=1e-3, atol=1e-3)

    # a frozen critic: only the action's gradient is asked for
    frozen = fast.spatial_embed(
        shared.detach(), action, norm.requires_grad_(False), weight.detach()
    )
    torch.testing.assert_close(grads(frozen, dz, action)[0], grads(z, dz, action)[0])


def test_gradients_do_not_depend_on_threads() -> None:
    norm = layer_norm(256)
    x, shared, action = leaf(2, 300, 256), leaf(40, 8, 256), leaf(40, 1, 256)
    weight, bias = leaf(1, 8, 256), leaf(2, 1)
    inputs = [x, bias, shared, action, weight, *norm.parameters()]

    def run(threads: int) -> list[torch.Tensor]:
        torch.set_num_threads(threads)
        loss = fast.norm_relu(x, norm, bias).square().sum()
        loss = loss + fast.spatial_embed(shared, action, norm, weight).square().sum()
        return list(torch.autograd.grad(loss, inputs))

    before = torch.get_num_threads()
    try:
        one, three = run(1), run(3)
    finally:
        torch.set_num_threads(before)
    for a, b in zip(one, three, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_dropout_is_fair_scaled_and_seeded(isa: str, p: float) -> None:
    x = torch.ones(400, 1000, requires_grad=True)
    torch.manual_seed(1)
    y = fast.norm_relu(x, p=p)
    kept = y > 0
    assert abs(kept.float().mean().item() - (1 - p)) < 4 * (p * (1 - p) / x.numel()) ** 0.5
    torch.testing.assert_close(y[kept], torch.full_like(y[kept], 1 / (1 - p)))
    # rows and columns are as even as chance makes them, and neighbours independent
    spread = (p * (1 - p)) ** 0.5
    assert (kept.float().mean(1) - (1 - p)).abs().max() < 5 * spread / 1000**0.5
    assert (kept.float().mean(0) - (1 - p)).abs().max() < 5 * spread / 400**0.5
    for a, b in ((kept[:, 1:], kept[:, :-1]), (kept[1:], kept[:-1])):
        assert abs((a & b).float().mean().item() - (1 - p) ** 2) < 0.005

    (dx,) = torch.autograd.grad(y.sum(), x)
    assert torch.equal(dx, y)  # the same mask, drawn again
    torch.manual_seed(1)
    assert torch.equal(fast.norm_relu(x, p=p), y)
    assert not torch.equal(fast.norm_relu(x, p=p), y)


def test_nan_and_infinity_come_through() -> None:
    x = torch.tensor([[1.0, float("nan"), -1.0], [2.0, float("inf"), -3.0]])
    assert torch.equal(fast.norm_relu(x).isnan(), F.relu(x).isnan())
    assert fast.norm_relu(x)[1, 1] == float("inf")
    assert bool(fast.norm_relu(x, layer_norm(3))[0].isnan().all())


W, X3 = torch.zeros(8, 4), torch.zeros(2, 3, 8)
MISFITS = {
    "norm": lambda: fast.norm_relu(X3, nn.LayerNorm(16)),
    "norm's weight": lambda: fast.norm_relu(X3, odd_norm()),
    "bias": lambda: fast.norm_relu(X3, bias=torch.zeros(2, 5)),
    "members of a bias": lambda: fast.norm_relu(X3, bias=torch.zeros(3, 8)),
    "spatial norm": lambda: fast.spatial_embed(X3, X3, nn.LayerNorm(16), torch.zeros(1, 3, 8)),
    "spatial action": lambda: fast.spatial_embed(
        X3, torch.zeros(2, 3, 7), nn.LayerNorm(8), torch.zeros(1, 3, 8)
    ),
    "perceptron": lambda: fast.perceptron(torch.zeros(2, 3), [Layer(W, None)]),
    "perceptron's norm": lambda: fast.perceptron(
        torch.zeros(2, 4), [Layer(W, None, nn.LayerNorm(4))]
    ),
    "perceptron's bias": lambda: fast.perceptron(torch.zeros(2, 4), [Layer(W, torch.zeros(5))]),
    "targets": lambda: fast.soft_update([torch.zeros(64)], [torch.zeros(8, 3)], 0.5),
}


def odd_norm() -> nn.LayerNorm:
    norm = nn.LayerNorm(8)
    norm.weight = nn.Parameter(torch.ones(5))
    return norm


@pytest.mark.parametrize("what", MISFITS)
def test_operands_that_do_not_fit_are_refused_as_by_torch(what: str) -> None:
    """The kernels take addresses: they would read beyond an array that is too small."""
    with pytest.raises(RuntimeError), torch.no_grad():
        MISFITS[what]()


def test_fast_sequential_is_sequential() -> None:
    torch.manual_seed(0)
    layers = [
        Linear(6, 8),
        nn.Dropout(0.0),
        nn.LayerNorm(8),
        nn.ReLU(),
        nn.Linear(8, 8),
        nn.LayerNorm(8),  # not followed by a ReLU
        nn.Tanh(),
        nn.Dropout(0.5),
        nn.Linear(8, 3),
    ]
    net, plain = MLP(*layers), nn.Sequential(*layers)
    x = torch.randn(10, 6)
    torch.manual_seed(3)
    y = net(x)
    torch.manual_seed(3)
    torch.testing.assert_close(y, plain(x))
    torch.testing.assert_close(net.eval()(x), plain.eval()(x))
    assert list(net.state_dict()) == list(plain.state_dict())
    assert isinstance(net[1:], MLP)


@pytest.mark.parametrize("shape", [(40, 24), (3, 40, 24), (4, 24)])
@pytest.mark.parametrize("with_bias", [True, False])
def test_linear(backend: str, shape: tuple[int, ...], with_bias: bool) -> None:
    x, w = leaf(*shape), leaf(10, 24)
    b = leaf(10) if with_bias else None
    inputs = [t for t in (x, w, b) if t is not None]
    y, plain = fast.linear(x, w, b), F.linear(x, w, b)
    torch.testing.assert_close(y, plain)
    dy = torch.randn_like(y)
    for a, c in zip(grads(y, dy, *inputs), grads(plain, dy, *inputs), strict=True):
        torch.testing.assert_close(a, c, rtol=1e-4, atol=1e-4)
    # the input often is a view that is not contiguous, or a slice of columns
    if len(shape) == 3:
        t = torch.randn(3, 24, 40).transpose(1, 2)
        torch.testing.assert_close(fast.linear(t, w[:, :24], b), F.linear(t, w, b))


@pytest.mark.parametrize("shared_input", [True, False])
def test_ensemble_matmul(backend: str, shared_input: bool) -> None:
    x = leaf(32, 12) if shared_input else leaf(4, 32, 12)
    w = leaf(4, 12, 20)
    y, plain = fast.ensemble_matmul(x, w), torch.matmul(x, w)
    torch.testing.assert_close(y, plain)
    dy = torch.randn_like(y)
    for a, b in zip(grads(y, dy, x, w), grads(plain, dy, x, w), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("append_action", [0, 1])
@pytest.mark.parametrize("layer_norm_kind", [0, 1])
def test_members_alone_or_together(backend: str, append_action: int, layer_norm_kind: int) -> None:
    cfg = MultiFcQConfig(
        num_q=5, num_layer=2, hidden_dim=16, layer_norm=layer_norm_kind, append_action=append_action
    )
    critic = MultiFcQ((6,), 3, cfg)
    for linear in critic.modules():
        if isinstance(linear, _MultiLinear):
            nn.init.normal_(linear.biases)
    state, actions = torch.randn(20, 6), torch.randn(20, 2, 3)
    every = critic.q({"state": state}, actions)
    for members in ([0], [3, 4], [0, 2, 3], [4, 1]):
        some = critic.q({"state": state}, actions, members)
        torch.testing.assert_close(some, every[..., members])
    net = critic.net
    assert isinstance(net, EnsembleMLP)
    x = torch.cat([state, actions[:, 0]], dim=-1)
    torch.testing.assert_close(net(x), net.plain(x))
    torch.testing.assert_close(net.min_member(x), net.plain(x).min(0).values.squeeze(-1))


def test_spatial_emb_with_prop_is_the_formula() -> None:
    torch.manual_seed(0)
    module = SpatialEmb(num_patch=7, patch_dim=4, prop_dim=3, emb_dim=16, dropout=0.0)
    feat, prop = torch.randn(5, 7, 4), torch.randn(5, 3)
    rows = torch.cat([feat.transpose(1, 2), prop[:, None].expand(-1, 4, -1)], dim=-1)
    plain = nn.Sequential(*module.input_proj)(rows)
    torch.testing.assert_close(module(feat, prop), (plain * module.weight).sum(1))


def test_switches_refuse_what_they_do_not_know(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, function in (
        ("IBRL_GEMM", choice.named),
        ("IBRL_MALLOC", process.keep_freed_memory),
    ):
        monkeypatch.setenv(name, "nonsense")
        process.keep_freed_memory.cache_clear()
        for early in (function, fast.set_up):  # the latter: before a run has written anything
            with pytest.raises(
                UserError, match=f"^{name}: 'nonsense', expected [a-z, ]+ or [a-z]+$"
            ):
                early()
        monkeypatch.delenv(name)
        process.keep_freed_memory.cache_clear()
    monkeypatch.setenv("IBRL_MALLOC", "system")
    assert fast.keep_freed_memory() is False
    fast.keep_freed_memory.cache_clear()


def test_without_the_module_everything_still_works(monkeypatch: pytest.MonkeyPatch) -> None:
    x, norm = torch.randn(4, 8), layer_norm(8)
    weight, action = torch.randn(1, 4, 8), torch.randn(2, 3, 8)
    shared = torch.randn(2, 4, 8)
    fused = fast.norm_relu(x, norm), fast.spatial_embed(shared, action, norm, weight)
    monkeypatch.setattr(module, "kernels", None)
    torch.testing.assert_close(fast.norm_relu(x, norm), fused[0])
    torch.testing.assert_close(fast.spatial_embed(shared, action, norm, weight), fused[1])


def test_no_second_derivative_by_accident() -> None:
    net, x = MLP(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 1)), leaf(3, 8)
    (dx,) = torch.autograd.grad(net(x).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        dx.sum().backward()
