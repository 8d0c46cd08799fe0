"""Every operation in plain torch, against which the other back ends are tested.

Runs on any device and dtype. An operation made of others leaves each part to the back
end that computes it fastest.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from networks.dropout import dropout
from networks.fast.layer import Layer
from networks.fast.table import Kernel, call, compilable

Pair = tuple[int, int]  # height, width


def linear(x: torch.Tensor, w: torch.Tensor, b: torch.Tensor | None) -> torch.Tensor:
    # torch multiplies a batch of transposed matrices one by one, at half the speed
    return F.linear(x if x.dim() == 2 else x.contiguous(), w, b)


def ensemble_matmul(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    return torch.bmm(x, w) if x.dim() == 3 else torch.matmul(x, w)


def norm_relu(
    x: torch.Tensor, norm: nn.LayerNorm | None, bias: torch.Tensor | None, p: float
) -> torch.Tensor:
    if bias is not None:
        x = x + bias.view(bias.size(0), *[1] * (x.dim() - 2), bias.size(1))
    # an ensemble's first axis is that of its members
    axis = 0 if bias is None else 1
    return F.relu(dropout(x if norm is None else norm(x), p, axis))


def conv2d(
    x: torch.Tensor, w: torch.Tensor, b: torch.Tensor | None, stride: Pair, padding: Pair
) -> torch.Tensor:
    return F.conv2d(x, w, b, stride, padding)


def channel_norm(
    x: torch.Tensor, norm: nn.Module, residual: torch.Tensor | None, relu: bool
) -> torch.Tensor:
    y = norm(x) if residual is None else norm(x) + residual
    return F.relu(y, inplace=True) if relu else y


def perceptron(
    x: torch.Tensor, layers: Sequence[Layer], members: Sequence[int] | torch.Tensor | None
) -> torch.Tensor:
    if isinstance(members, torch.Tensor):
        return _neighbours(x, layers, members)
    first = 0
    parts = []
    for run in _runs(range(layers[0].num) if members is None else members):
        size = run.stop - run.start
        mine = x[first : first + size] if x.dim() == 3 else x
        parts.append(_neighbours(mine, layers, run))
        first += size
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _runs(members: Sequence[int]) -> list[slice]:
    """Members as slices of neighbours, because slicing the weights copies nothing."""
    runs: list[slice] = []
    for m in members:
        if runs and runs[-1].stop == m:
            runs[-1] = slice(runs[-1].start, m + 1)
        else:
            runs.append(slice(m, m + 1))
    return runs


def _neighbours(
    x: torch.Tensor, layers: Sequence[Layer], run: slice | torch.Tensor
) -> torch.Tensor:
    for layer in layers:
        weight, bias = layer.of(run)
        x = call("ensemble_matmul", x, weight)
        if layer.hidden:
            x = call("norm_relu", x, layer.norm, bias, layer.p)
        elif bias is not None:
            x = x + bias.unsqueeze(1)
    return x


def min_member(x: torch.Tensor, layers: Sequence[Layer]) -> torch.Tensor:
    return call("perceptron", x, layers, None).squeeze(-1).min(dim=0).values


def spatial_embed(
    shared: torch.Tensor, action: torch.Tensor, norm: nn.LayerNorm, weight: torch.Tensor
) -> torch.Tensor:
    # one candidate at a time bounds the memory
    zs = [(F.relu(norm(shared + a[:, None])) * weight).sum(1) for a in action.unbind(1)]
    return torch.stack(zs, dim=1)


def soft_update(net: Sequence[torch.Tensor], target: Sequence[torch.Tensor], tau: float) -> None:
    with torch.no_grad():
        torch._foreach_lerp_(list(target), list(net), tau)


def _always(*args: Any) -> bool:
    return True


# Adam has no entry: if no kernel takes it, torch.optim.Adam's own step runs (networks.optim)
OPERATIONS = {
    f.__name__: Kernel(_always, f)
    for f in (
        linear,
        ensemble_matmul,
        norm_relu,
        conv2d,
        channel_norm,
        perceptron,
        min_member,
        spatial_embed,
        soft_update,
    )
}
compilable(OPERATIONS)
