"""The passes of :mod:`networks.ibc.energy` in torch operations."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from networks import fast
from networks.ibc.energy_net import Weights


@dataclass
class TorchNet:
    """Weights ready for the passes; matrices in the dtype of the products."""

    w: Weights
    dtype: torch.dtype

    def __post_init__(self) -> None:
        self.w = replace(self.w, layers=tuple(m.to(self.dtype) for m in self.w.layers))

    def forward(
        self, first: Tensor, actions: Tensor, with_grad: bool
    ) -> tuple[Tensor, Tensor | None]:
        """first [B, W], actions [B, N, A] -> f [B, N], df/da or None."""
        return evaluate(self.w, self.dtype, first, actions, with_grad)

    def forward_saving(
        self, first: Tensor, actions: Tensor, with_grad: bool
    ) -> tuple[Tensor, Tensor | None, Pass]:
        """f as above, and what :meth:`gradients` needs."""
        run = Pass(self.w, self.dtype)
        f = run.forward(first, actions)
        return f, run.action_grad(actions.shape) if with_grad else None, run

    def gradients(
        self, saved: Pass, actions: Tensor, scale: Tensor, u: Tensor | None = None
    ) -> list[Tensor | None]:
        """d(sum scale f + sum u . df/da) / d(first, *Weights.tensors()).

        scale [rows]; u [rows, A] or None. With g_i = df/d(output of layer i) and t_i the tangent
        of h_i along u, a matrix's gradient is the sum over rows of g_i (scale h_i + t_i)^T.
        """
        return _gradients(saved, actions, scale, u)


def evaluate(
    w: Weights, dtype: torch.dtype, first: Tensor, actions: Tensor, with_grad: bool
) -> tuple[Tensor, Tensor | None]:
    """:meth:`TorchNet.forward` as a function of tensors, for ``networks.graphs``."""
    run = Pass(w, dtype)
    f = run.forward(first, actions)
    return f, run.action_grad(actions.shape) if with_grad else None


@dataclass
class Pass:
    """One evaluation of all rows, by torch operations. ``w`` carries no graph."""

    w: Weights
    dtype: torch.dtype
    inputs: list[Tensor] = field(default_factory=list)  # h_0..h_L [rows, W]
    stream: Tensor | None = None

    def forward(self, first: Tensor, actions: Tensor) -> Tensor:
        """first [B, W], actions [B, N, A] -> f [B, N]; keeps what the gradients need."""
        b, n, _ = actions.shape
        w, kind = self.w, self.w.kind
        x = torch.baddbmm(first.unsqueeze(1), actions, w.w_a.t().expand(b, -1, -1))
        stream = x.view(b * n, -1)
        h = stream.to(self.dtype) if kind == "ResNetOrig" else self._relu(stream)
        self.inputs = [h]
        for i, (weight, bias) in enumerate(zip(w.layers, w.biases, strict=True)):
            y = self._product(h, weight, bias)
            if kind == "ResNetPreActivation" and i % 2:
                stream = stream.add_(y)
                h = self._relu(stream)
            elif kind == "ResNetOrig" and i % 2:
                h = F.relu_(y.add_(self.inputs[-2]))
            else:
                h = F.relu_(y)
            self.inputs.append(h)
        f = h.float() @ w.head + w.const
        if w.head_stream is not None:
            f += stream @ w.head_stream
            self.stream = stream
        return f.view(b, n)

    def action_grad(self, shape: torch.Size) -> Tensor:
        """df/da, of the shape of the actions."""
        *_, g = self.layer_grads()
        return (g @ self.w.w_a).view(shape)

    def layer_grads(self, scale: Tensor | None = None) -> list[Tensor]:
        """d(scale f) / d(output of layer L-1 .. 0), then / dx (float32); scale [rows] or None."""
        w, last, out = self.w, len(self.w.layers), []
        g = self._head(w.head, scale, last)
        stream: Tensor | None = g.float() if w.kind == "ResNetOrig" else None
        if w.head_stream is not None:
            stream = w.head_stream if scale is None else scale.unsqueeze(1) * w.head_stream
        for i in range(last - 1, -1, -1):
            out.append(g)
            d = self._product(g, w.layers[i].t())
            h = self.inputs[i]
            if stream is None or i % 2:
                g = _masked(d, h)
            elif w.kind == "ResNetPreActivation":
                stream = stream + _masked(d, h)
                g = stream.to(self.dtype)
            else:
                stream = stream + d
                stream = _masked(stream, h) if i else stream
                g = stream.to(self.dtype)
        out.append(g.float() if stream is None else stream)
        return out

    def tangents(self, u: Tensor) -> tuple[list[Tensor], Tensor | None]:
        """Directional derivatives of h_0..h_L and of the stream along u [rows, A]."""
        w, kind = self.w, self.w.kind
        stream = u @ w.w_a.t()
        t = stream.to(self.dtype)
        ts = [t if kind == "ResNetOrig" else _masked(t, self.inputs[0])]
        for i, weight in enumerate(w.layers):
            t = self._product(ts[-1], weight)
            if kind == "ResNetPreActivation" and i % 2:
                stream = stream + t
                t = stream.to(self.dtype)
            elif kind == "ResNetOrig" and i % 2:
                t += ts[-2]
            ts.append(_masked(t, self.inputs[i + 1]))
        return ts, stream if w.head_stream is not None else None

    def _head(self, head: Tensor, scale: Tensor | None, last: int) -> Tensor:
        rows = self.inputs[last].size(0)
        g = head.expand(rows, -1) if scale is None else scale.unsqueeze(1) * head
        return _masked(g.to(self.dtype), self.inputs[last])

    def _relu(self, x: Tensor) -> Tensor:
        # a copy: the stream is still needed
        return F.relu(x) if self.dtype is torch.float32 else x.to(self.dtype).relu_()

    def _product(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        if self.dtype is torch.float32:
            return fast.linear(x, weight, bias)
        return F.linear(x, weight, None if bias is None else bias.to(self.dtype))


def _masked(g: Tensor, h: Tensor) -> Tensor:
    """g where h > 0, else 0."""
    return torch.ops.aten.threshold_backward(g, h, 0)


def _gradients(run: Pass, actions: Tensor, scale: Tensor, u: Tensor | None) -> list[Tensor | None]:
    """d(sum scale f + sum u . df/da) / d(first, *Weights.tensors()).

    With g_i = df/d(output of layer i) and t_i the tangent of h_i along u, the weight's gradient is
    sum over rows of g_i (scale h_i + t_i)^T.
    """
    b, n, a = actions.shape
    rows_actions = actions.reshape(-1, a)
    column = scale.unsqueeze(1)
    if u is None:  # the scale goes through the backward pass
        *grads, gx = run.layer_grads(scale)
        hs, stream, head_weight = run.inputs, run.stream, scale
        first = gx.view(b, n, -1).sum(1)
        w_a = gx.t() @ rows_actions
        biases = [_column_sum(g) for g in grads]
        head = _weighted_sum(hs[-1], head_weight)
        head_stream = None if stream is None else _weighted_sum(stream, head_weight)
    else:
        *grads, gx = run.layer_grads()
        ts, t_stream = run.tangents(u)
        hs = [torch.addcmul(t, h, column.to(h.dtype)) for t, h in zip(ts, run.inputs, strict=True)]
        first = torch.bmm(scale.view(b, 1, n), gx.view(b, n, -1)).squeeze(1)
        w_a = gx.t() @ (column * rows_actions + u)
        biases = [_weighted_sum(g, scale) for g in grads]
        head, head_stream = _column_sum(hs[-1]), None
        if run.stream is not None and t_stream is not None:
            head_stream = _weighted_sum(run.stream, scale) + t_stream.sum(0)
    grads.reverse()
    biases.reverse()
    layers = [(g.t() @ h).float() for g, h in zip(grads, hs, strict=False)]
    return [first, w_a, head, head_stream, scale.sum(), *layers, *biases]


def _column_sum(x: Tensor) -> Tensor:
    return x.sum(0, dtype=torch.float32)


def _weighted_sum(x: Tensor, weight: Tensor) -> Tensor:
    """sum over rows of weight[row] x[row], in float32."""
    return weight.to(x.dtype) @ x if x.dtype is torch.float32 else weight @ x.float()
