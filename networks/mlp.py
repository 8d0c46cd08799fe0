"""Fully connected trunks and the stacked (ensemble) linear layer."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn

from networks import fast, fast_mlp


def build_fc(
    in_dim: int, hidden_dim: int, out_dim: int, num_layer: int, layer_norm: int, dropout: float
) -> nn.Sequential:
    """num_layer x [Linear, (LayerNorm), Dropout, ReLU] + Linear + Tanh.

    layer_norm: 0 none, 1 in every hidden layer, 2 in the last one only. The Dropout module is
    there even at p = 0, because official checkpoints count it in their indices.
    """
    if num_layer < 1:
        raise ValueError(f"num_layer must be at least 1, got {num_layer}")
    if layer_norm not in (0, 1, 2):
        raise ValueError(f"layer_norm must be 0, 1 or 2, got {layer_norm}")
    layers: list[nn.Module] = []
    for i in range(num_layer):
        layers.append(fast.Linear(in_dim if i == 0 else hidden_dim, hidden_dim))
        if layer_norm == 1 or (layer_norm == 2 and i == num_layer - 1):
            layers.append(nn.LayerNorm(hidden_dim))
        layers += [nn.Dropout(dropout), nn.ReLU()]
    return fast_mlp.Sequential(*layers, fast.Linear(hidden_dim, out_dim), nn.Tanh())


class EnsembleLinear(nn.Module):
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

    def select(self, members: Sequence[int] | None) -> tuple[torch.Tensor, torch.Tensor]:
        """Weights [M, in, out] and biases [M, 1, 1 or out] of some members (None: all)."""
        biases = self.biases.squeeze(0).unsqueeze(1)
        index = None if members is None else list(members)
        if index is None or index == list(range(self.weights.size(0))):
            return self.weights, biases
        return self.weights[index], biases[index]
