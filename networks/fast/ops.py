"""The hot operations of networks. The fastest back end computes each (``fast.table``).

The fast forms save passes over memory: a normalised, rectified layer is one pass instead
of four, a perceptron is one call, and the spatial embedding never stores its [B, rows, emb]
intermediate results. Their gradients cannot be differentiated again.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn

from networks.fast.layer import Layer
from networks.fast.table import call, find


def linear(x: torch.Tensor, w: torch.Tensor, b: torch.Tensor | None = None) -> torch.Tensor:
    """x [..., in], w [out, in], b [out] or None -> [..., out]."""
    return call("linear", x, w, b)


def ensemble_matmul(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    """x [rows, in] or [M, rows, in], w [M, in, out] -> [M, rows, out]."""
    return call("ensemble_matmul", x, w)


def norm_relu(
    x: torch.Tensor,
    norm: nn.LayerNorm | None = None,
    bias: torch.Tensor | None = None,
    p: float = 0.0,
) -> torch.Tensor:
    """relu(dropout(norm(x + bias), p)); the result has x's shape.

    x float [..., width]; bias None, or [M, 1] or [M, width] for x [M, ..., width] (one row per
    member of an ensemble); p the dropout probability, 0 outside training. On the CPU the mask
    comes from a counter-based generator keyed by one number of torch's global generator (and
    is drawn again from it in the backward pass instead of being stored); a probability is
    exact to 2**-32.
    """
    return call("norm_relu", x, norm, bias, p)


def conv2d(
    x: torch.Tensor,
    w: torch.Tensor,
    b: torch.Tensor | None,
    stride: tuple[int, int],
    padding: tuple[int, int],
) -> torch.Tensor:
    """x [B, C, H, W], w [out, C, kh, kw], b [out] or None -> [B, out, h, w]."""
    return call("conv2d", x, w, b, stride, padding)


def channel_norm(
    x: torch.Tensor, norm: nn.Module, residual: torch.Tensor | None = None, relu: bool = True
) -> torch.Tensor:
    """norm(x) + residual, rectified if ``relu``; x and residual [B, C, H, W], norm of C channels.

    One pass if ``norm`` normalises every channel by itself and is frozen.
    """
    return call("channel_norm", x, norm, residual, relu)


def perceptron(
    x: torch.Tensor, layers: Sequence[Layer], members: Sequence[int] | torch.Tensor | None = None
) -> torch.Tensor:
    """x [rows, in] (or [M, rows, in]) -> [M, rows, out] of the given members (None: all).

    members as an index int64 [M] are never read by the host, but their weights are copied.
    """
    return call("perceptron", x, layers, members)


def min_member(x: torch.Tensor, layers: Sequence[Layer]) -> torch.Tensor:
    """The smallest member's value per row, for layers with one output: [rows, in] -> [rows].

    With frozen layers the backward pass costs one member per row, not all.
    """
    return call("min_member", x, layers)


def spatial_embed(
    shared: torch.Tensor, action: torch.Tensor, norm: nn.LayerNorm, weight: torch.Tensor
) -> torch.Tensor:
    """sum over rows of relu(norm(shared + action)) * weight, for every candidate.

    shared float [B, rows, emb] (the observation's part of the projection), action [B, N, emb]
    (a candidate's part, bias included), weight [1, rows, emb] -> [B, N, emb]. The largest
    tensor of a pixel update is ``shared``; it is read once and nothing of its size is written.
    """
    return call("spatial_embed", shared, action, norm, weight)


def soft_update(net: Sequence[torch.Tensor], target: Sequence[torch.Tensor], tau: float) -> None:
    """target <- tau * net + (1 - tau) * target, in place, for tensors in the same order."""
    call("soft_update", net, target, tau)


def _chain(todo: list[nn.Module], start: int) -> tuple[list[Layer], int]:
    """Layers from todo[start] on that form one perceptron, and where they end."""
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
        elif j == i + 1:  # nothing follows that belongs to it: the chain's last layer
            if layers:
                layers.append(Layer(linear.weight, linear.bias, hidden=False))
                i = j
            break
        else:
            break
    return layers, i


def sequential(modules: Iterable[nn.Module], x: torch.Tensor) -> torch.Tensor:
    """Computes ``nn.Sequential(*modules)(x)`` with as many layers per pass as possible."""
    todo = [m for m in modules if not (isinstance(m, nn.Dropout) and not (m.training and m.p > 0))]
    i = part_by_part = 0
    while i < len(todo):
        chain, end = _chain(todo, i) if i >= part_by_part else ([], i)
        if chain:
            operands = (x.reshape(-1, x.size(-1)), chain, None)
            found = find("perceptron", *operands)
            # a back end's perceptron pays off only as a whole; else part by part
            if found is not None and found[0] != "plain":
                y = found[1].run(*operands)
                x, i = y.view(*x.shape[:-1], y.size(-1)), end
                continue
            part_by_part = end
        j, norm, p = i, None, 0.0
        m: Any = todo[j]
        if isinstance(m, nn.LayerNorm) and len(m.normalized_shape) == 1:
            norm, j = m, j + 1
        if j < len(todo) and isinstance(drop := todo[j], nn.Dropout):
            p, j = drop.p, j + 1
        if j < len(todo) and isinstance(todo[j], nn.ReLU):
            x, i = norm_relu(x, norm, p=p), j + 1
        else:
            x, i = m(x), i + 1
    return x
