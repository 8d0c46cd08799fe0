"""Evaluation of energy networks: values and gradients, in fast passes where there are some.

What the passes save on the CPU compared with plain torch, all of it exact up to rounding:

* the last dense layer of a pre-activation ResNet has only linear layers after it: the output
  unit is multiplied into it once per call, W_L^T w, instead of W_L into every row;
* chains need only df/da: no graph, no gradients of weights, masks instead of activations;
* f is a scalar per row, so df/d(layer) for one row gives everything: the gradient of any loss
  of the logits *and of df/da* (gradient penalty) needs one backward pass, one tangent pass and
  one product per weight matrix. ReLU networks have no second derivative almost everywhere.

``precision`` "bfloat16" multiplies matrices in bfloat16 with float32 sums; the first layer, the
residual stream, the output unit and all gradients of parameters stay float32. "bfloat16x3" splits
factors in two parts and makes three such products (torch's float32 matmul precision "high"): errors
of about 3e-6 of a layer's norm, twice float32's speed; without tile registers it is float32.

The passes are C++ (:mod:`networks.ibc.fused`) for networks that fit in the cache, else torch
operations (:mod:`networks.ibc.passes`); ``IBC_KERNELS`` (environment) = auto, off or the name of
a build of the C++ chooses.

Networks that have no ``fast_weights()`` (:class:`networks.ibc.energy_net.EnergyNet`) run
as plain torch, with the same results in float32 (and without the bfloat16 option's speed).

This is the only entrance: nothing outside this package imports the passes (import-linter).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from networks.graphs import Compile, compiled
from networks.ibc.energy_net import EnergyNet, Kind, Weights
from networks.ibc.fused import FusedNet, choose, kernels_mode
from networks.ibc.passes import TorchNet, evaluate

Precision = Literal["float32", "bfloat16x3", "bfloat16"]


def check_kernels() -> None:
    """UserError for a value of ``IBC_KERNELS`` that names nothing."""
    kernels_mode()


def build_name(precision: Precision, width: int, layers: int) -> str:
    """The build of the C++ that evaluates networks of this width on this CPU, or "torch"."""
    return choose(precision, width, layers) or "torch"


def _checked(precision: str) -> str:
    if precision not in get_args(Precision):
        known = ", ".join(get_args(Precision))
        raise ValueError(f"precision is {precision!r}, must be one of {known}")
    return precision


def _dtype(precision: str) -> torch.dtype:
    return torch.bfloat16 if precision == "bfloat16" else torch.float32


def _ready(w: Weights, precision: str) -> FusedNet | TorchNet:
    build = choose(precision, w.head.numel(), len(w.layers))
    return TorchNet(w, _dtype(precision)) if build is None else FusedNet(w, build)


# ---------------------------------------------------------------------- without a graph


@lru_cache(maxsize=8)
def _graph(how: Compile, device: torch.device) -> Callable[..., tuple[Tensor, Tensor | None]]:
    """One graph for all chains: weights are arguments."""
    return compiled(evaluate, how, "ebm.compile", device)


@dataclass
class GraphNet(TorchNet):
    """The torch passes as a compiled graph."""

    how: Compile = "default"

    def forward(
        self, first: Tensor, actions: Tensor, with_grad: bool
    ) -> tuple[Tensor, Tensor | None]:
        """As :meth:`TorchNet.forward`."""
        run = _graph(self.how, first.device)
        return run(self.w, self.dtype, first.contiguous(), actions.contiguous(), with_grad)


class Prepared:
    """A network's weights prepared for many evaluations: make one per chain or per action.

    Later changes to the network have no effect on it, unless it has no ``fast_weights()``: then the
    network itself is called. ``how``: as one graph (``networks.graphs``), or off.
    """

    def __init__(
        self, net: EnergyNet, precision: Precision = "float32", how: Compile = "off"
    ) -> None:
        self.net = net
        _checked(precision)
        self._ready: tuple[Weights, FusedNet | TorchNet] | None = None
        with torch.no_grad():
            w = net.fast_weights()
            if w is not None:
                if how == "off":
                    self._ready = w, _ready(w, precision)
                else:
                    self._ready = w, GraphNet(w, _dtype(precision), how)

    @torch.no_grad()
    def logits(self, encoded: Tensor, actions: Tensor) -> Tensor:
        """encoded [B, E], actions [B, N, A] -> f [B, N]."""
        if self._ready is None:
            return self.net.score(encoded, actions)
        w, ready = self._ready
        return ready.forward(w.first(encoded), actions, False)[0]

    def logits_and_action_grad(self, encoded: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        """encoded [B, E], actions [B, N, A] -> f [B, N], df/da [B, N, A]; neither has a graph."""
        if self._ready is None:
            return _plain_action_grad(self.net, encoded, actions)
        with torch.no_grad():
            w, ready = self._ready
            f, grad = ready.forward(w.first(encoded), actions, True)
        assert grad is not None  # requested above
        return f, grad


def _plain_action_grad(net: EnergyNet, encoded: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
    with torch.enable_grad():
        actions = actions.detach().requires_grad_()
        f = net.score(encoded.detach(), actions)
        (grad,) = torch.autograd.grad(f.sum(), actions)
    return f.detach(), grad


# ---------------------------------------------------------------------- with a graph


class _Score(torch.autograd.Function):
    """(f, df/da or None) as a function of first [B, W] and the weights."""

    @staticmethod
    def forward(
        ctx: Any,
        first: Tensor,
        actions: Tensor,
        with_grad: bool,
        kind: Kind,
        precision: str,
        *tensors: Tensor | None,
    ) -> tuple[Tensor, Tensor | None]:
        w = Weights.of_tensors(kind, tensors)
        ready = TorchNet(w, _dtype(precision)) if with_grad else _ready(w, precision)
        f, grad, saved = ready.forward_saving(first, actions, with_grad)
        ctx.ready, ctx.saved, ctx.actions = ready, saved, actions
        ctx.set_materialize_grads(False)
        return f, grad

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, df: Tensor | None, dgrad: Tensor | None) -> Any:
        ready, saved, actions = ctx.ready, ctx.saved, ctx.actions
        b, n, a = actions.shape
        scale = actions.new_zeros(b * n) if df is None else df.reshape(-1)
        if dgrad is None:
            first, *rest = ready.gradients(saved, actions, scale)
        else:
            first, *rest = ready.gradients(saved, actions, scale, dgrad.reshape(-1, a))
        return first, None, None, None, None, *rest


def fast_score(
    net: EnergyNet, encoded: Tensor, actions: Tensor, precision: Precision = "float32"
) -> Tensor:
    """``net.score(encoded, actions)`` [B, N] with gradients for the weights and ``encoded``.

    encoded [B, E], actions [B, N, A]. Not differentiable a second time (an error says so), and
    actions get no gradient; for the gradient penalty see :func:`fast_score_and_action_grad`.
    """
    _checked(precision)
    w = net.fast_weights()
    if w is None:
        return net.score(encoded, actions)
    first = w.first(encoded)
    return _Score.apply(first, actions.detach(), False, w.kind, precision, *w.tensors())[0]


def fast_score_and_action_grad(
    net: EnergyNet, encoded: Tensor, actions: Tensor, precision: Precision = "float32"
) -> tuple[Tensor, Tensor]:
    """f [B, N] and df/da [B, N, A], both differentiable (once) by the weights and ``encoded``.

    A loss with a gradient penalty needs both; this costs little more than :func:`fast_score`.
    """
    _checked(precision)
    actions = actions.detach()
    w = net.fast_weights()
    if w is None:
        actions = actions.requires_grad_()
        f = net.score(encoded, actions)
        return f, torch.autograd.grad(f.sum(), actions, create_graph=True)[0]
    return _Score.apply(w.first(encoded), actions, True, w.kind, precision, *w.tensors())
