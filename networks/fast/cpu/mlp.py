"""Whole perceptrons, single or in an ensemble, forward and backward in one call each.

The C++ kernels (csrc/kernels) compute the layers of one member after another, so that
activations stay in the cache. They have their own matrix products, which are as fast as MKL's on
Intel, do not run at half speed on AMD, and need no tensor, dispatch or autograd node per operation.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch

from networks.fast import choice
from networks.fast.cpu import module
from networks.fast.cpu.module import address, drop_args, needs_graph
from networks.fast.cpu.module import loaded as kernels
from networks.fast.layer import Layer
from networks.fast.process import threads


def takes_perceptron(
    x: torch.Tensor, layers: Sequence[Layer], members: Sequence[int] | torch.Tensor | None
) -> bool:
    """CPU, float32, one input for all members, contiguous parameters, not empty."""
    if not layers or x.dim() != 2 or x.numel() == 0 or isinstance(members, torch.Tensor):
        return False
    if not (module.fits(x) and module.has_gemm()):
        return False
    num, inputs = layers[0].num, x.size(1)
    if members is not None and not all(0 <= m < num for m in members):
        return False
    for layer in layers:
        shapes = tuple([None if t is None else t.shape for t in layer.params])
        normed = None if layer.norm is None else layer.norm.normalized_shape
        inputs = _outputs(shapes, normed, num, inputs)
        if layer.p >= 1.0 or inputs == 0:
            return False
        for t in layer.params:
            if t is not None and not (t.dtype is torch.float32 and t.is_cpu and t.is_contiguous()):
                return False
    return choice.perceptron(layers[0].sizes[1]) == "kernels"


@lru_cache(maxsize=1024)  # looking at shapes takes longer than a small layer
def _outputs(
    shapes: tuple[torch.Size | None, ...], normed: tuple[int, ...] | None, num: int, inputs: int
) -> int:
    """Outputs of a layer whose params have these shapes; 0 unless it has ``num`` members of
    ``inputs`` inputs, and parts of matching sizes.
    """
    weight, bias, gamma, beta = shapes
    if weight is None or len(weight) not in (2, 3):
        return 0
    members, rows, outputs = weight if len(weight) == 3 else (1, weight[1], weight[0])
    if members != num or rows != inputs:
        return 0
    if bias is not None and bias.numel() not in (num, num * outputs):
        return 0
    fits = normed is None or normed == gamma == beta == (outputs,)
    return outputs if fits else 0


# All but the dropout of a layer, as the first arguments of `named`.
Described = tuple[tuple[int, ...], torch.Size, int, float, bool]


class _Plan:
    """What a call needs in addition to tensors: the perceptrons in the kernels' form."""

    def __init__(self, x: torch.Tensor, members: list[int], layers: Sequence[Layer]) -> None:
        self.rows, self.members = x.size(0), members
        self.num, self.out = layers[0].num, layers[-1].sizes[1]
        self.operands = kernels().Mlp(
            rows=x.size(0),
            x=x.data_ptr(),
            members=members,
            layers=[_operands(layer) for layer in layers],
            **(module.numbered(x.size(0)) if any(layer.p for layer in layers) else {}),
        )

    def run(self, x: torch.Tensor, graph: bool, hidden: bool) -> tuple[torch.Tensor, Any]:
        """-> out [M, rows, out], and what the backward pass needs."""
        out = x.new_empty(len(self.members), self.rows, self.out)
        saved = x.new_empty(self.operands.saved_size(hidden=hidden)) if graph else None
        kernels().mlp(
            self.operands,
            out=out.data_ptr(),
            saved=address(saved),
            hidden=hidden,
            threads=threads(),
        )
        return out, saved


def described(layer: Layer) -> Described:
    """All but the dropout of a layer, as the first arguments of :func:`named`."""
    where = tuple([0 if t is None else t.data_ptr() for t in layer.params])
    bias = layer.params[1]
    per_member = 0 if bias is None else bias.size(-1)
    eps = 0.0 if layer.norm is None else layer.norm.eps
    return where, layer.weight.shape, per_member, eps, layer.hidden


def _operands(layer: Layer) -> Any:
    if layer.p:  # each call has its own seed
        return named(*described(layer), drop=drop_args(layer.p))
    return _known(*described(layer))


def named(
    where: tuple[int, ...],
    shape: torch.Size,
    per_member: int,
    eps: float,
    hidden: bool,
    drop: tuple[int, float, int] = (0, 1.0, 0),
) -> Any:
    """A layer in the kernels' form. ``where``: addresses of ``Layer.params``; ``shape``: that of
    the weight; ``per_member``: how many numbers of the bias belong to a member.
    """
    transposed = len(shape) == 2
    inputs, outputs = (shape[1], shape[0]) if transposed else (shape[1], shape[2])
    weight, bias, gamma, beta = where
    keep, scale, seed = drop
    return kernels().MlpLayer(
        inputs=inputs,
        outputs=outputs,
        w=weight,
        transposed=transposed,
        bias=bias,
        bias_per_unit=per_member == outputs,
        gamma=gamma,
        beta=beta,
        eps=eps,
        keep=keep,
        scale=scale,
        seed=seed,
        hidden=hidden,
    )


# Describing the operands of a small layer takes longer than computing it. The key contains all of
# the description, so that weights which are moved, replaced or freed are never mistaken for others.
_known = lru_cache(maxsize=1024)(named)


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
        kernels().mlp_grad(
            plan.operands,
            saved=saved.data_ptr(),
            hidden=ctx.hidden,
            dout=dout.data_ptr(),
            dx=address(dx),
            layers=_layer_grads(grads) if ctx.hidden else [],
            threads=threads(),
        )
        return _once(dx, None, *grads)


def _layer_grads(grads: Sequence[torch.Tensor | None]) -> list[Any]:
    """Four tensors per layer, in the order of ``Layer.params``, in the kernels' form."""
    at = [address(g) for g in grads]
    return [
        kernels().MlpLayerGrad(dw=at[i], dbias=at[i + 1], dgamma=at[i + 2], dbeta=at[i + 3])
        for i in range(0, len(at), 4)
    ]


def _once(*grads: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
    """Gradients that raise an error when they are differentiated again.

    (torch's ``once_differentiable`` does that only if the incoming gradient has a graph; a
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
    """The smallest member's value per row, [rows]; its gradient reaches only that member."""

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
        kernels().mlp_grad_picked(
            plan.operands,
            saved=saved.data_ptr(),
            hidden=False,
            pick=index.data_ptr(),
            dout=dout.data_ptr(),
            dx=dx.data_ptr(),
            threads=threads(),
        )
        return _once(dx, None)


def perceptron(
    x: torch.Tensor, layers: Sequence[Layer], members: Sequence[int] | None
) -> torch.Tensor:
    """See ``networks.fast.ops``; dropout masks are drawn as in ``norm_relu`` there."""
    x = x.contiguous()
    members = range(layers[0].num) if members is None else members
    plan = _Plan(x, list(members), layers)
    params = [t for layer in layers for t in layer.params]
    if needs_graph(x, *params):
        return _Mlp.apply(x, plan, *params)
    return plan.run(x, False, False)[0]


def takes_min_member(x: torch.Tensor, layers: Sequence[Layer]) -> bool:
    """The shortcut gives only the gradient of x: it needs frozen layers and no dropout."""
    if not x.requires_grad or any(layer.p > 0.0 for layer in layers):
        return False
    if any(t is not None and t.requires_grad for layer in layers for t in layer.params):
        return False
    return takes_perceptron(x, layers, None)


def min_member(x: torch.Tensor, layers: Sequence[Layer]) -> torch.Tensor:
    """See ``networks.fast.ops``; each row's gradient goes through its smallest member only."""
    x = x.contiguous()
    return _MinMember.apply(x, _Plan(x, list(range(layers[0].num)), layers))
