"""Whole perceptrons, single or in an ensemble, forward and backward in one call each.

The C++ kernels (csrc/kernels_mlp.cc) take the layers of one member after the other, so that
activations stay in the cache, with matrix products of their own: as fast as MKL's on Intel, on
AMD not halved, and without a tensor, a dispatch and an autograd node per operation. What they
don't cover (GPU, float64, a chosen ``IBRL_GEMM``) runs in plain torch or by ``networks.fast``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn

from networks import fast


class Layer:
    """A linear layer; if hidden, relu(dropout(norm(. + bias), p)) after it.

    weight [M, in, out], or nn.Linear's [out, in] (a single member); bias None, one number per
    member or one per unit; norm's parameters are shared by the members.
    """

    __slots__ = ("hidden", "norm", "p", "params", "weight")

    def __init__(
        self,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        norm: nn.LayerNorm | None = None,
        p: float = 0.0,
        hidden: bool = True,
    ) -> None:
        self.weight, self.norm, self.p, self.hidden = weight, norm, p, hidden
        gamma, beta = (None, None) if norm is None else (norm.weight, norm.bias)
        # looked at several times in a call, and modules are slow to give them
        self.params: tuple[torch.Tensor | None, ...] = (weight, bias, gamma, beta)

    @property
    def sizes(self) -> tuple[int, int]:
        """Inputs, outputs."""
        *_, rows, columns = self.weight.shape
        return (rows, columns) if self.weight.dim() == 3 else (columns, rows)


def fits(x: torch.Tensor, layers: Sequence[Layer]) -> bool:
    """Whether the kernels can take it: CPU, float32, contiguous parameters, not empty."""
    if not layers or x.numel() == 0 or not (fast.fits(x) and fast.own_gemm()):
        return False
    for layer in layers:
        if layer.p >= 1.0 or (layer.norm is not None and layer.params[3] is None):
            return False
        for t in layer.params:
            if t is not None and not (t.dtype is torch.float32 and t.is_cpu and t.is_contiguous()):
                return False
    return True


class _Plan:
    """What a call needs beside tensors: the layers as the kernels take them."""

    def __init__(self, rows: int, members: list[int], layers: Sequence[Layer]) -> None:
        self.rows, self.members = rows, members
        self.layers = [_layer_args(layer) for layer in layers]
        self.num = layers[0].weight.size(0) if layers[0].weight.dim() == 3 else 1
        self.out = layers[-1].sizes[1]

    def run(self, x: torch.Tensor, graph: bool, hidden: bool) -> tuple[torch.Tensor, Any]:
        """-> out [M, rows, out], and what the backward pass needs."""
        assert fast.kernels is not None
        out = x.new_empty(len(self.members), self.rows, self.out)
        saved = None
        if graph:
            size = fast.kernels.mlp_saved_size(self.rows, self.members, self.layers, hidden)
            saved = x.new_empty(size)
        fast.kernels.mlp(
            self.rows,
            x.data_ptr(),
            self.members,
            self.layers,
            out.data_ptr(),
            fast.address(saved),
            hidden,
            fast.threads(),
        )
        return out, saved


def _layer_args(layer: Layer) -> tuple[Any, ...]:
    w, b, gamma, beta = layer.params
    in_dim, out_dim = layer.sizes
    return (
        in_dim,
        out_dim,
        layer.weight.data_ptr(),
        layer.weight.dim() == 2,
        0 if b is None else b.data_ptr(),
        b is not None and b.size(-1) == out_dim,
        0 if gamma is None else gamma.data_ptr(),
        0 if beta is None else beta.data_ptr(),
        0.0 if layer.norm is None else layer.norm.eps,
        *(fast.drop_args(layer.p) if layer.p else (0, 1.0, 0)),
        layer.hidden,
    )


class _Mlp(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, plan: _Plan, *params: torch.Tensor | None
    ) -> torch.Tensor:
        hidden = any(ctx.needs_input_grad[2:])
        out, saved = plan.run(x, True, hidden)
        ctx.save_for_backward(x, saved, *params)
        ctx.plan, ctx.hidden = plan, hidden
        return out

    @staticmethod
    def backward(ctx: Any, dout: torch.Tensor) -> Any:
        x, saved, *params = ctx.saved_tensors
        plan: _Plan = ctx.plan
        dout = dout.contiguous()
        dx = torch.empty_like(x) if ctx.needs_input_grad[0] else None
        grads = [_new_grad(plan, i, t, ctx.needs_input_grad[2 + i]) for i, t in enumerate(params)]
        at = [fast.address(g) for g in grads]
        assert fast.kernels is not None
        fast.kernels.mlp_grad(
            plan.rows,
            x.data_ptr(),
            plan.members,
            plan.layers,
            saved.data_ptr(),
            ctx.hidden,
            dout.data_ptr(),
            fast.address(dx),
            [(at[i], at[i + 1], at[i + 2], at[i + 3]) for i in range(0, len(at), 4)]
            if ctx.hidden
            else [],
            fast.threads(),
        )
        return _once(dx, None, *grads)


def _once(*grads: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
    """Gradients that say so when somebody differentiates them again.

    (torch's ``once_differentiable`` does that only where the incoming gradient has a graph; a
    gradient penalty on the whole network would silently get zeros.)
    """
    if not torch.is_grad_enabled():
        return grads
    message = b"trying to differentiate twice a function that was marked with once_differentiable"
    fail: Any = torch._C._functions.DelayedError(message, len(grads))
    marked = [None if g is None else g.detach().requires_grad_() for g in grads]
    return tuple(fail(*marked))


def _new_grad(plan: _Plan, i: int, param: torch.Tensor | None, wanted: bool) -> torch.Tensor | None:
    # gamma and beta go together
    if param is None or not wanted:
        return None
    written = i % 4 == 0 and len(plan.members) == plan.num
    return torch.empty_like(param) if written else torch.zeros_like(param)


class _MinMember(torch.autograd.Function):
    """The smallest member's value per row, [rows]; its gradient reaches that member alone."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, plan: _Plan) -> torch.Tensor:
        out, saved = plan.run(x, True, False)
        value, index = out.squeeze(-1).min(dim=0)
        ctx.save_for_backward(x, saved, index)
        ctx.plan = plan
        return value

    @staticmethod
    def backward(ctx: Any, dout: torch.Tensor) -> Any:
        x, saved, index = ctx.saved_tensors
        plan: _Plan = ctx.plan
        dout = dout.contiguous()
        dx = torch.empty_like(x)
        assert fast.kernels is not None
        fast.kernels.mlp_grad_picked(
            plan.rows,
            x.data_ptr(),
            plan.members,
            plan.layers,
            saved.data_ptr(),
            False,
            index.data_ptr(),
            dout.data_ptr(),
            dx.data_ptr(),
            fast.threads(),
        )
        return _once(dx, None)


def mlp(
    x: torch.Tensor, layers: Sequence[Layer], members: Sequence[int] | None = None
) -> torch.Tensor:
    """x [rows, in] -> [M, rows, out] of the given members (None: all of them).

    Ask :func:`fits` first. Dropout is drawn as ``fast.norm_relu`` draws it.
    """
    x = x.contiguous()
    num = layers[0].weight.size(0) if layers[0].weight.dim() == 3 else 1
    plan = _Plan(x.size(0), list(range(num)) if members is None else list(members), layers)
    params = [t for layer in layers for t in layer.params]
    if fast.needs_graph(x, *params):
        return _Mlp.apply(x, plan, *params)
    return plan.run(x, False, False)[0]


def min_member(x: torch.Tensor, layers: Sequence[Layer]) -> torch.Tensor | None:
    """mlp(x, layers).min over members -> [rows], for frozen layers with one output.

    Backward, each row's gradient goes through its smallest member alone. None where that
    shortcut isn't open: parameters that want gradients, or dropout.
    """
    params = [t for layer in layers for t in layer.params]
    if not x.requires_grad or any(layer.p > 0.0 for layer in layers):
        return None
    if any(t is not None and t.requires_grad for t in params):
        return None
    x = x.contiguous()
    return _MinMember.apply(x, _Plan(x.size(0), list(range(layers[0].weight.size(0))), layers))


def _chain(todo: list[nn.Module], start: int) -> tuple[list[Layer], int]:
    """Layers from todo[start] on that :func:`mlp` can take together, and where they end."""
    layers: list[Layer] = []
    i = start
    while i < len(todo) and isinstance(linear := todo[i], nn.Linear):
        j, norm, p = i + 1, None, 0.0
        if j < len(todo) and isinstance(m := todo[j], nn.LayerNorm):
            if m.normalized_shape != (linear.out_features,):
                break
            norm, j = m, j + 1
        if j < len(todo) and isinstance(drop := todo[j], nn.Dropout):
            p, j = drop.p, j + 1
        if j < len(todo) and isinstance(todo[j], nn.ReLU):
            layers.append(Layer(linear.weight, linear.bias, norm, p))
            i = j + 1
        elif j == i + 1:  # nothing that belongs to it: the chain's last layer
            if layers:
                layers.append(Layer(linear.weight, linear.bias, hidden=False))
                i = j
            break
        else:
            break
    return layers, i


def run_layers(layers: Iterable[nn.Module], x: torch.Tensor) -> torch.Tensor:
    """What ``nn.Sequential(*layers)(x)`` gives, with as many layers per pass as can be."""
    todo = [m for m in layers if not (isinstance(m, nn.Dropout) and not (m.training and m.p > 0))]
    i = 0
    while i < len(todo):
        chain, end = _chain(todo, i)
        if chain and fits(x, chain):
            y = mlp(x.reshape(-1, x.size(-1)), chain)
            x, i = y.view(*x.shape[:-1], y.size(-1)), end
            continue
        j, norm, p = i, None, 0.0
        m = todo[j]
        if isinstance(m, nn.LayerNorm) and len(m.normalized_shape) == 1:
            norm, j = m, j + 1
        if j < len(todo) and isinstance(drop := todo[j], nn.Dropout):
            p, j = drop.p, j + 1
        if j < len(todo) and isinstance(todo[j], nn.ReLU):
            x, i = fast.norm_relu(x, norm, p=p), j + 1
        else:
            x, i = m(x), i + 1
    return x


class Sequential(nn.Sequential):
    """nn.Sequential, run by :func:`run_layers`."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        """x -> the last layer's output."""
        return run_layers(self, x)
