"""Fused elementwise operations by the C++ kernels: norm-relu-dropout, spatial embedding."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable

from networks.fast.cpu import module
from networks.fast.cpu.module import address, drop_args, needs_graph
from networks.fast.cpu.module import loaded as kernels
from networks.fast.process import threads


class _NormRelu(torch.autograd.Function):
    """relu(dropout(layer_norm(x + bias))); x [M, ..., width], bias [M, 1 or width] or None."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        bias: torch.Tensor | None,
        gamma: torch.Tensor | None,
        beta: torch.Tensor | None,
        eps: float,
        drop: tuple[int, float, int],
    ) -> torch.Tensor:
        y, stats, operands = _norm_relu(x, bias, gamma, beta, eps, drop)
        ctx.save_for_backward(x, bias, gamma, beta, stats)
        ctx.operands = operands
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: torch.Tensor) -> Any:
        x, bias, gamma, _, _ = ctx.saved_tensors  # kept alive for ctx.operands
        dy = dy.contiguous()
        dx = torch.empty_like(x)
        dbias = torch.zeros_like(bias) if bias is not None and ctx.needs_input_grad[1] else None
        dgamma = dbeta = None
        if gamma is not None and (ctx.needs_input_grad[2] or ctx.needs_input_grad[3]):
            dgamma, dbeta = torch.zeros(2, x.size(-1)).unbind()
        grad = kernels().NormReluGrad(
            dy=address(dy),
            dx=address(dx),
            dbias=address(dbias),
            dgamma=address(dgamma),
            dbeta=address(dbeta),
        )
        kernels().norm_relu_grad(ctx.operands, grad, threads=threads())
        return dx, dbias, dgamma, dbeta, None, None


def _norm_relu(
    x: torch.Tensor,
    bias: torch.Tensor | None,
    gamma: torch.Tensor | None,
    beta: torch.Tensor | None,
    eps: float,
    drop: tuple[int, float, int],
) -> tuple[torch.Tensor, torch.Tensor | None, Any]:
    """-> y, what the backward pass needs, and the operands in the kernels' form."""
    width = x.size(-1)
    groups = 1 if bias is None else bias.size(0)
    rows = x.numel() // width // groups
    y = torch.empty_like(x)
    stats = None if gamma is None else torch.empty(2, groups * rows)
    keep, scale, seed = drop
    operands = kernels().NormRelu(
        groups=groups,
        rows=rows,
        width=width,
        x=address(x),
        bias=address(bias),
        bias_per_unit=bias is not None and bias.numel() != groups,
        gamma=address(gamma),
        beta=address(beta),
        eps=eps,
        keep=keep,
        scale=scale,
        seed=seed,
        stats=address(stats),
        **(module.numbered(rows) if keep else {}),
    )
    kernels().norm_relu(operands, y=address(y), threads=threads())
    return y, stats, operands


def takes_norm_relu(
    x: torch.Tensor, norm: nn.LayerNorm | None, bias: torch.Tensor | None, p: float
) -> bool:
    if x.numel() == 0 or x.dim() == 0 or p >= 1.0:
        return False
    if norm is not None and not module.norm_fits(norm, x.size(-1)):
        return False
    if bias is not None:  # one row per member
        if x.dim() < 2 or bias.dim() != 2 or bias.size(0) != x.size(0):
            return False
        if bias.size(1) not in (1, x.size(-1)):
            return False
    gamma, beta = (None, None) if norm is None else (norm.weight, norm.bias)
    return module.fits(x, bias, gamma, beta)


def norm_relu(
    x: torch.Tensor, norm: nn.LayerNorm | None, bias: torch.Tensor | None, p: float
) -> torch.Tensor:
    """See ``networks.fast.ops``."""
    gamma, beta = (None, None) if norm is None else (norm.weight, norm.bias)
    drop = drop_args(p)
    x = x.contiguous()
    bias = None if bias is None else bias.contiguous()
    eps = 0.0 if norm is None else norm.eps
    if needs_graph(x, bias, gamma, beta):
        return _NormRelu.apply(x, bias, gamma, beta, eps, drop)
    return _norm_relu(x, bias, gamma, beta, eps, drop)[0]


class _Spatial(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        shared: torch.Tensor,
        action: torch.Tensor,
        gamma: torch.Tensor,
        beta: torch.Tensor,
        weight: torch.Tensor,
        eps: float,
    ) -> torch.Tensor:
        z, stats, operands = _spatial(shared, action, gamma, beta, weight, eps)
        ctx.save_for_backward(shared, action, gamma, beta, weight, stats)
        ctx.operands = operands
        return z

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dz: torch.Tensor) -> Any:
        shared, action, _, _, weight, _ = ctx.saved_tensors  # kept alive for ctx.operands
        _, rows, width = shared.shape
        dz = dz.contiguous()
        dshared = torch.empty_like(shared) if ctx.needs_input_grad[0] else None
        daction = torch.empty_like(action)
        dgamma = dbeta = dweight = None
        if any(ctx.needs_input_grad[2:5]):
            dparams = torch.zeros(2 + rows, width)
            dgamma, dbeta, dweight = dparams[0], dparams[1], dparams[2:].view_as(weight)
        grad = kernels().SpatialGrad(
            dz=address(dz),
            dshared=address(dshared),
            daction=address(daction),
            dgamma=address(dgamma),
            dbeta=address(dbeta),
            dweight=address(dweight),
        )
        kernels().spatial_grad(ctx.operands, grad, threads=threads())
        return dshared, daction, dgamma, dbeta, dweight, None


def _spatial(
    shared: torch.Tensor,
    action: torch.Tensor,
    gamma: torch.Tensor,
    beta: torch.Tensor,
    weight: torch.Tensor,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor, Any]:
    """-> z, what the backward pass needs, and the operands in the kernels' form."""
    batch, rows, width = shared.shape
    num = action.size(1)
    z = torch.empty(batch, num, width)
    stats = torch.empty(2, batch * rows * num)
    operands = kernels().Spatial(
        batch=batch,
        rows=rows,
        num=num,
        width=width,
        shared=address(shared),
        action=address(action),
        gamma=address(gamma),
        beta=address(beta),
        weight=address(weight),
        eps=eps,
        stats=address(stats),
    )
    kernels().spatial(operands, out=address(z), threads=threads())
    return z, stats, operands


def takes_spatial_embed(
    shared: torch.Tensor, action: torch.Tensor, norm: nn.LayerNorm, weight: torch.Tensor
) -> bool:
    if shared.dim() != 3 or action.dim() != 3 or shared.numel() == 0:
        return False
    batch, rows, width = shared.shape
    if action.size(0) != batch or action.size(2) != width or action.numel() == 0:
        return False
    if weight.shape != (1, rows, width) or not weight.is_contiguous():
        return False
    return module.norm_fits(norm, width) and module.fits(
        shared, action, norm.weight, norm.bias, weight
    )


def spatial_embed(
    shared: torch.Tensor, action: torch.Tensor, norm: nn.LayerNorm, weight: torch.Tensor
) -> torch.Tensor:
    """See ``networks.fast.ops``."""
    args = (shared.contiguous(), action.contiguous(), norm.weight, norm.bias, weight, norm.eps)
    if needs_graph(*args[:5]):
        return _Spatial.apply(*args)
    return _spatial(*args)[0]


def takes_channel_norm(
    x: torch.Tensor, norm: nn.Module, residual: torch.Tensor | None, relu: bool
) -> bool:
    """One group per channel, frozen, and contiguous in either layout.

    Networks that are being trained keep torch's own rounding, whether or not there is a graph.
    """
    if not isinstance(norm, nn.GroupNorm) or norm.num_groups != norm.num_channels:
        return False
    if x.dim() != 4 or x.numel() == 0 or x.size(1) != norm.num_channels or not norm.affine:
        return False
    if residual is not None and not (residual.shape == x.shape and _layout(residual) == _layout(x)):
        return False
    operands = (x, norm.weight, norm.bias, residual)
    frozen = not norm.weight.requires_grad and not norm.bias.requires_grad
    return frozen and _layout(x) is not None and module.fits(*operands) and not needs_graph(x)


def _layout(x: torch.Tensor) -> torch.memory_format | None:
    """Of dense pictures; None: gaps."""
    layouts = (torch.contiguous_format, torch.channels_last)
    return next((f for f in layouts if x.is_contiguous(memory_format=f)), None)


def channel_norm(
    x: torch.Tensor, norm: nn.GroupNorm, residual: torch.Tensor | None, relu: bool
) -> torch.Tensor:
    """See ``networks.fast.ops``."""
    y = torch.empty_like(x)
    operands = kernels().ChannelNorm(
        pictures=x.size(0),
        channels=x.size(1),
        size=x.size(2) * x.size(3),
        x=address(x),
        channels_last=not x.is_contiguous(),
        gamma=address(norm.weight),
        beta=address(norm.bias),
        residual=address(residual),
        eps=norm.eps,
        relu=relu,
    )
    kernels().channel_norm(operands, y=address(y), threads=threads())
    return y
