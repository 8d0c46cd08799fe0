"""Perceptrons: a single one, or the members of an ensemble.

This file defines what they compute; ``networks.fast`` chooses the back end.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn

from networks import fast
from networks.dropout import RowDropout


class Linear(nn.Linear):
    """nn.Linear with the fastest matrix product."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x [..., in] -> [..., out]."""
        return fast.linear(x, self.weight, self.bias)

    def part(self, x: torch.Tensor, start: int, bias: torch.Tensor | None = None) -> torch.Tensor:
        """The share of the input columns [start, start + x.size(-1)), plus ``bias``."""
        return fast.linear(x, self.weight[:, start : start + x.size(-1)], bias)


class MLP(nn.Sequential):
    """nn.Sequential of Linear, LayerNorm, Dropout, ReLU and others, one pass per layer."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        """x [..., in] -> [..., out], as nn.Sequential gives."""
        return fast.sequential(self, x)

    def after_first(self, x: torch.Tensor) -> torch.Tensor:
        """The same without the first module, for an input that is already its output."""
        return fast.sequential(list(self)[1:], x)


def build_fc(
    in_dim: int, hidden_dim: int, out_dim: int, num_layer: int, layer_norm: int, dropout: float
) -> MLP:
    """num_layer x [Linear, (LayerNorm), Dropout, ReLU] + Linear + Tanh.

    layer_norm: 0 none, 1 in every hidden layer, 2 in the last one only. The Dropout module is
    there even at p = 0, because official checkpoints count it in their indices.
    """
    layers: list[nn.Module] = []
    for i in range(num_layer):
        layers.append(Linear(in_dim if i == 0 else hidden_dim, hidden_dim))
        if layer_norm == 1 or (layer_norm == 2 and i == num_layer - 1):
            layers.append(nn.LayerNorm(hidden_dim))
        layers += [RowDropout(dropout), nn.ReLU()]
    return MLP(*layers, Linear(hidden_dim, out_dim), nn.Tanh())


class _MultiLinear(nn.Module):
    """``num`` linear layers side by side.

    weights [num, in, out]; biases [1, num, 1] (one scalar per member, as in the original) or
    [1, num, out] with ``bias_per_unit``. Every member starts distributed like a single layer:
    weights U(-1/sqrt(in), 1/sqrt(in)), biases zero.
    """

    def __init__(self, num: int, in_dim: int, out_dim: int, bias_per_unit: bool = False) -> None:
        super().__init__()
        bound = 1.0 / math.sqrt(in_dim)
        self.weights = nn.Parameter(torch.empty(num, in_dim, out_dim).uniform_(-bound, bound))
        self.biases = nn.Parameter(torch.zeros(1, num, out_dim if bias_per_unit else 1))

    def orth_init(self) -> None:
        """Make the weight matrix of each member orthogonal (gain 1)."""
        for member in self.weights.data:
            nn.init.orthogonal_(member)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x [rows, in] or [num, rows, in] -> [num, rows, out]."""
        return torch.matmul(x, self.weights) + self.biases.transpose(0, 1)


class EnsembleMLP(nn.Sequential):
    """An ensemble of perceptrons: _MultiLinear, (LayerNorm), (Dropout), ReLU, ..., _MultiLinear.

    The LayerNorms are shared by the members. ``repeated``: layers after the first take the first
    layer's last ``repeated`` inputs (the action) in addition to the previous layer's outputs.
    """

    def __init__(self, *modules: nn.Module, repeated: int = 0) -> None:
        super().__init__(*modules)
        self.repeated = repeated
        # per layer; in a list of lists, so that nothing is registered twice
        self._layers: list[list[nn.Module]] = []
        for m in modules:
            if isinstance(m, _MultiLinear):
                self._layers.append([])
            self._layers[-1].append(m)

    def plain(self, x: torch.Tensor) -> torch.Tensor:
        """x [rows, in] -> [num, rows, out], in plain torch operations: the definition."""
        appended = x[:, x.size(1) - self.repeated :]
        for i, layer in enumerate(self._layers):
            if i > 0 and self.repeated:
                x = torch.cat([x, appended.expand(x.size(0), -1, -1)], dim=-1)
            for module in layer:
                x = module(x)
        return x

    def forward(  # type: ignore[override]
        self, x: torch.Tensor, members: Sequence[int] | torch.Tensor | None = None
    ) -> torch.Tensor:
        """x [rows, in] -> [M, rows, out] of the given members (None: all)."""
        layers = self.layers()
        if not self.repeated:
            return fast.perceptron(x, layers, members)
        appended = x[:, x.size(1) - self.repeated :]
        for i, layer in enumerate(layers):
            if i > 0:
                x = torch.cat([x, appended.expand(x.size(0), -1, -1)], dim=-1)
            x = fast.perceptron(x, [layer], members)
        return x

    def min_member(self, x: torch.Tensor) -> torch.Tensor:
        """x [rows, in] -> the smallest member's only output, [rows].

        With frozen parameters the gradient of x costs one member per row, not all.
        """
        if self.repeated:
            return self(x).squeeze(-1).min(dim=0).values
        return fast.min_member(x, self.layers())

    def layers(self) -> list[fast.Layer]:
        """The layers in the form that ``networks.fast`` takes."""
        out = []
        for modules in self._layers:
            linear, norm, p = modules[0], None, 0.0
            for m in modules[1:]:
                if isinstance(m, nn.LayerNorm):
                    norm = m
                elif isinstance(m, nn.Dropout) and m.training:
                    p = m.p
            assert isinstance(linear, _MultiLinear)  # each group begins with one
            hidden = len(modules) > 1
            out.append(fast.Layer(linear.weights, linear.biases, norm, p, hidden))
        return out
