"""The fast forms of the energy network against plain torch in float64."""

from __future__ import annotations

import copy

import pytest
import torch

from networks import ebm_fast
from networks.ibc_mlp import MLPEBM, MLPConfig

KINDS = ["MLPDropout", "ResNetOrig", "ResNetPreActivation"]


def make(kind: str, width: int, depth: int, dense: str = "regular", a: int = 3) -> MLPEBM:
    torch.manual_seed(width * 31 + depth)
    cfg = MLPConfig(width=width, depth=depth, rate=0.0, layers=kind, dense_layer_type=dense)
    net = MLPEBM(5, a, cfg)
    with torch.no_grad():  # activations of order one in every layer
        for p in net.parameters():
            p.mul_(20 * (2 / p.size(-1)) ** 0.5 if p.dim() == 2 else 4)
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


def check(value: torch.Tensor, want: torch.Tensor, precision: str, what: str = "") -> None:
    error = (value.double() - want.double()).norm() / want.double().norm().clamp(min=1e-12)
    assert error < (2e-6 if precision == "float32" else 0.02), f"{what}: relative error {error}"


CASES = [
    (kind, width, depth) for kind in KINDS for width, depth in ((3, 2), (33, 4), (128, 8), (256, 2))
]


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("dense", ["regular", "spectral_norm"])
@pytest.mark.parametrize("kind, width, depth", CASES)
def test_values_and_action_gradient(
    kind: str, width: int, depth: int, dense: str, precision: str
) -> None:
    net = make(kind, width, depth, dense)
    obs, actions = inputs(net)
    _, f, grad = exact(net, obs, actions)
    encoded = net.encode(obs)
    check(ebm_fast.logits(net, encoded, actions, precision), f, precision)
    ready = ebm_fast.prepare(net, precision)
    value, value_grad = ebm_fast.logits_and_action_grad(ready, encoded, actions)
    assert not value.requires_grad and not value_grad.requires_grad
    check(value, f, precision)
    if precision == "float32":  # in bfloat16 units near zero may switch
        check(value_grad, grad, precision)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("dense", ["regular", "spectral_norm"])
@pytest.mark.parametrize("kind, width, depth", CASES)
@pytest.mark.parametrize("penalty", [False, True])
def test_gradients_of_parameters(
    kind: str, width: int, depth: int, dense: str, precision: str, penalty: bool
) -> None:
    net = make(kind, width, depth, dense)
    obs, actions = inputs(net)
    slope = torch.randn(7, 9)

    def loss(f: torch.Tensor, grad: torch.Tensor | None) -> torch.Tensor:
        total = (f * slope.to(f.dtype)).mean()
        return total if grad is None else total + (grad.abs().amax(-1) - 0.1).clamp(min=0).mean()

    want_net, f, grad = exact(net, obs, actions)
    loss(f, grad if penalty else None).backward()
    encoded = net.encode(obs)
    encoded.retain_grad()
    if penalty:
        value, value_grad = ebm_fast.fast_score_and_action_grad(net, encoded, actions, precision)
        loss(value, value_grad).backward()
    else:
        value = ebm_fast.fast_score(net, encoded, actions, precision)
        loss(value, None).backward()
    check(value, f, precision)
    for (name, p), q in zip(net.named_parameters(), want_net.parameters(), strict=True):
        assert p.grad is not None and q.grad is not None
        if precision == "float32":
            scale = max(q.grad.norm().item(), 1e-3)
            assert (p.grad.double() - q.grad).norm() < 1e-5 * scale, name
