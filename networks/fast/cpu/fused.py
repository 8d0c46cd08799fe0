"""Fused elementwise operations by the C++ kernels: norm-relu-dropout, spatial embedding."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable

from networks.fast.cpu import module
from networks.fast.cpu.module import address, drop_args, needs_graph
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
        y, stats, shape = _norm_relu(x, bias, gamma, beta, eps, drop)
        ctx.save_for_backward(x, bias, gamma, beta, stats)
        ctx.rest = (shape, eps, drop)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: torch.Tensor) -> Any:
        x, bias, gamma, beta, stats = ctx.saved_tensors
        (groups, rows, width, per_unit), eps, (keep, scale, seed) = ctx.rest
        dy = dy.contiguous()
        dx = torch.empty_like(x)
        dbias = torch.zeros_like(bias) if bias is not None and ctx.needs_input_grad[1] else None
        dnorm = None
        if gamma is not None and (ctx.needs_input_grad[2] or ctx.needs_input_grad[3]):
            dnorm = torch.zeros(2, width)
        base = address(dnorm)
        module.kernels.norm_relu_grad(
            groups,
            rows,
            width,
            address(x),
            address(bias),
            per_unit,
            address(gamma),
            address(beta),
            eps,
            keep,
            scale,
            seed,
            address(stats),
            address(dy),
            address(dx),
            address(dbias),
            base,
            base + 4 * width if base else 0,
            threads(),
        )
        dgamma, dbeta = (None, None) if dnorm is None else (dnorm[0], dnorm[1])
        return dx, dbias, dgamma, dbeta, None, None


def _norm_relu(
    x: torch.Tensor,
    bias: torch.Tensor | None,
    gamma: torch.Tensor | None,
    beta: torch.Tensor | None,
    eps: float,
    drop: tuple[int, float, int],
) -> tuple[torch.Tensor, torch.Tensor | None, tuple[int, int, int, bool]]:
    width = x.size(-1)
    groups = 1 if bias is None else bias.size(0)
    rows = x.numel() // width // groups
    per_unit = bias is not None and bias.numel() != groups
    y = torch.empty_like(x)
    stats = None if gamma is None else torch.empty(2, groups * rows)
    module.kernels.norm_relu(
        groups,
        rows,
        width,
        address(x),
        address(bias),
        per_unit,
        address(gamma),
        address(beta),
        eps,
        *drop,
        address(stats),
        address(y),
        threads(),
    )
    return y, stats, (groups, rows, width, per_unit)


def takes_norm_relu(
    x: torch.Tensor, norm: nn.LayerNorm | None, bias: torch.Tensor | None, p: float
) -> bool:
    gamma, beta = (None, None) if norm is None else (norm.weight, norm.bias)
    if norm is not None and (gamma is None or beta is None):
        return False
    return p < 1.0 and x.numel() > 0 and module.fits(x, bias, gamma, beta)


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
        z, stats = _spatial(shared, action, gamma, beta, weight, eps)
        ctx.save_for_backward(shared, action, gamma, beta, weight, stats)
        ctx.eps = eps
        return z

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dz: torch.Tensor) -> Any:
        shared, action, gamma, beta, weight, stats = ctx.saved_tensors
        batch, rows, width = shared.shape
        dz = dz.contiguous()
        dshared = torch.empty_like(shared) if ctx.needs_input_grad[0] else None
        daction = torch.empty_like(action)
        dparams = torch.zeros(2 + rows, width) if any(ctx.needs_input_grad[2:5]) else None
        module.kernels.spatial_grad(
            batch,
            rows,
            action.size(1),
            width,
            address(shared),
            address(action),
            address(gamma),
            address(beta),
            address(weight),
            ctx.eps,
            address(stats),
            address(dz),
            address(dshared),
            address(daction),
            address(dparams),
            threads(),
        )
        if dparams is None:
            return dshared, daction, None, None, None, None
        return dshared, daction, dparams[0], dparams[1], dparams[2:].view_as(weight), None


def _spatial(
    shared: torch.Tensor,
    action: torch.Tensor,
    gamma: torch.Tensor,
    beta: torch.Tensor,
    weight: torch.Tensor,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    batch, rows, width = shared.shape
    num = action.size(1)
    z = torch.empty(batch, num, width)
    stats = torch.empty(2, batch * rows * num)
    module.kernels.spatial(
        batch,
        rows,
        num,
        width,
        address(shared),
        address(action),
        address(gamma),
        address(beta),
        address(weight),
        eps,
        address(stats),
        address(z),
        threads(),
    )
    return z, stats


def takes_spatial_embed(
    shared: torch.Tensor, action: torch.Tensor, norm: nn.LayerNorm, weight: torch.Tensor
) -> bool:
    return shared.numel() > 0 and module.fits(shared, action, norm.weight, norm.bias, weight)


def spatial_embed(
    shared: torch.Tensor, action: torch.Tensor, norm: nn.LayerNorm, weight: torch.Tensor
) -> torch.Tensor:
    """See ``networks.fast.ops``."""
    args = (shared.contiguous(), action.contiguous(), norm.weight, norm.bias, weight, norm.eps)
    if needs_graph(*args[:5]):
        return _Spatial.apply(*args)
    return _spatial(*args)[0]
