"""A layer of one perceptron or of an ensemble, as passed to the operations."""

from __future__ import annotations

import torch
from torch import nn


class Layer:
    """A linear layer; if hidden, followed by relu(dropout(norm(. + bias), p)).

    weight [M, in, out], or nn.Linear's [out, in] (a single member); bias None, or one number per
    member or per unit; norm's parameters are shared by the members.
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
        # read several times in a call, and slow to read from a module
        self.params: tuple[torch.Tensor | None, ...] = (weight, bias, gamma, beta)

    @property
    def sizes(self) -> tuple[int, int]:
        """Inputs, outputs."""
        *_, rows, columns = self.weight.shape
        return (rows, columns) if self.weight.dim() == 3 else (columns, rows)

    @property
    def num(self) -> int:
        """Members."""
        return self.weight.size(0) if self.weight.dim() == 3 else 1

    def of(self, run: slice | torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Weights [M, in, out] and bias [M, 1 or out] of neighbouring members, as views, or of
        those that an index int64 [M] names.
        """
        weight, bias = self.params[:2]
        assert weight is not None  # the type of the tuple is wider
        if weight.dim() == 2:
            weight = weight.t().unsqueeze(0)
        bias = None if bias is None else bias.reshape(weight.size(0), -1)
        if isinstance(run, slice) and run == slice(
            0, weight.size(0)
        ):  # the whole weight: this avoids copying its gradient
            return weight, bias
        return weight[run], None if bias is None else bias[run]
