"""Fast evaluation of an :class:`networks.ibc_mlp.MLPEBM` on the CPU: values and gradients.

What is saved against plain torch, all of it exact up to rounding:

* the last dense layer of a pre-activation ResNet has only linear layers after it: the output
  unit is multiplied into it once per call, W_L^T w, instead of W_L into every row;
* chains need df/da alone: no graph, no gradients of weights, masks instead of activations;
* f is a scalar per row, so df/d(layer) for one row gives everything: the gradient of any loss
  of the logits *and of df/da* (gradient penalty) needs one backward pass, one tangent pass and
  one product per weight matrix. ReLU networks have no second derivative almost everywhere.

``precision`` "bfloat16" multiplies matrices in bfloat16 with float32 sums; the first layer, the
residual stream, the output unit and all gradients of parameters stay float32.

Networks that are not a ReLU trunk without normalisation and dropout run as plain torch, with the
same results in float32 (and without the bfloat16 option's speed).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from networks import fast
from networks.ibc_mlp import MLPEBM, SpectralNormDense

Precision = Literal["float32", "bfloat16"]
Kind = Literal["MLPDropout", "ResNetOrig", "ResNetPreActivation"]


@dataclass(frozen=True)
class Weights:
    """An MLPEBM as the fast forms see it; differentiable functions of the parameters.

    With x = encoded + w_a a, L layers and h_0..h_L their inputs and the last one's output,
    f = head . h_L + head_stream . s + const; s is the residual stream where the head sees it.
    """

    kind: Kind
    w_a: Tensor  # [W, A]
    layers: tuple[Tensor, ...]  # each [W, W], out x in
    biases: tuple[Tensor, ...]  # each [W]
    head: Tensor  # [W]
    head_stream: Tensor | None  # [W]; pre-activation only
    const: Tensor  # []
    sigma: Tensor | None  # spectral norm of the first layer
    first_bias: Tensor | None  # added after the division by sigma

    def first(self, encoded: Tensor) -> Tensor:
        """The observation's share of the first layer's output, [B, W]."""
        if self.sigma is None or self.first_bias is None:
            return encoded
        return encoded / self.sigma + self.first_bias

    def tensors(self) -> list[Tensor | None]:
        """All that a gradient is computed for."""
        return [self.w_a, self.head, self.head_stream, self.const, *self.layers, *self.biases]


def supported(net: MLPEBM) -> bool:
    """Whether the fast forms know this network: ReLU, no norm, no dropout, float32 on the CPU."""
    cfg = net.cfg
    weight = net.energy.weight
    if cfg.activation != "relu" or cfg.normalizer is not None:
        return False
    if cfg.rate > 0 and net.training:
        return False
    if cfg.layers != "MLPDropout" and cfg.depth < 2:
        return False
    return weight.is_cpu and weight.dtype is torch.float32


def weights_of(net: MLPEBM) -> Weights:
    """Collect a supported network's weights; one power iteration per layer with spectral norm."""
    first, kind = net.trunk.first, net.cfg.layers
    sigma = first.sigma()
    w_a = first.weight[:, net.obs_dim :]
    dense: list[Any] = [d for block in net.trunk.blocks for d in (block.w1, block.w2)]
    dense += net.trunk.hidden
    layers, biases = [_divided(d) for d in dense], [d.bias for d in dense]
    out, const = _divided(net.energy)[0], net.energy.bias[0]
    head, head_stream = out, None
    if kind == "ResNetPreActivation":
        head, head_stream = out @ layers.pop(), out
        const = const + out @ biases.pop()
    return Weights(
        kind,
        w_a if sigma is None else w_a / sigma,
        tuple(layers),
        tuple(biases),
        head,
        head_stream,
        const,
        sigma,
        first.bias if isinstance(first, SpectralNormDense) else None,
    )


def _divided(layer: Any) -> Tensor:
    sigma = layer.sigma()
    return layer.weight if sigma is None else layer.weight / sigma


# ---------------------------------------------------------------------- the passes, in torch


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
        # a copy: the stream lives on
        return F.relu(x) if self.dtype is torch.float32 else x.to(self.dtype).relu_()

    def _product(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        if self.dtype is torch.float32:
            return fast.linear(x, weight, bias)
        return F.linear(x, weight, None if bias is None else bias.to(self.dtype))

    def in_dtype(self) -> Pass:
        """The same with the matrices in the dtype of the products."""
        layers = tuple(m.to(self.dtype) for m in self.w.layers)
        self.w = _with_layers(self.w, layers)
        return self


def _with_layers(w: Weights, layers: tuple[Tensor, ...]) -> Weights:
    return Weights(
        w.kind, w.w_a, layers, w.biases, w.head, w.head_stream, w.const, w.sigma, w.first_bias
    )


def _masked(g: Tensor, h: Tensor) -> Tensor:
    """g where h > 0, else 0."""
    return torch.ops.aten.threshold_backward(g, h, 0)


def _dtype(precision: str) -> torch.dtype:
    if precision not in ("float32", "bfloat16"):
        raise ValueError(f"precision is {precision!r}, must be float32 or bfloat16")
    return torch.float32 if precision == "float32" else torch.bfloat16


# ---------------------------------------------------------------------- without a graph


class Prepared:
    """A network's weights made ready for many evaluations: take one per chain or per action.

    It does not follow later changes of the network. Unsupported networks are called as they are.
    """

    def __init__(self, net: MLPEBM, precision: Precision = "float32") -> None:
        self.net, self.dtype = net, _dtype(precision)
        self._weights: Weights | None = None
        if supported(net):
            with torch.no_grad():
                self._weights = Pass(weights_of(net), self.dtype).in_dtype().w

    @torch.no_grad()
    def logits(self, encoded: Tensor, actions: Tensor) -> Tensor:
        """encoded [B, E], actions [B, N, A] -> f [B, N]."""
        if self._weights is None:
            return self.net.score(encoded, actions)
        return self._pass().forward(self._weights.first(encoded), actions)

    def logits_and_action_grad(self, encoded: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        """encoded [B, E], actions [B, N, A] -> f [B, N], df/da [B, N, A]; neither has a graph."""
        if self._weights is None:
            return _plain_action_grad(self.net, encoded, actions)
        with torch.no_grad():
            run = self._pass()
            f = run.forward(self._weights.first(encoded), actions)
            return f, run.action_grad(actions.shape)

    def _pass(self) -> Pass:
        assert self._weights is not None  # callers have looked
        return Pass(self._weights, self.dtype)


def _plain_action_grad(net: MLPEBM, encoded: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
    with torch.enable_grad():
        actions = actions.detach().requires_grad_()
        f = net.score(encoded.detach(), actions)
        (grad,) = torch.autograd.grad(f.sum(), actions)
    return f.detach(), grad


def prepare(net: MLPEBM | Prepared, precision: Precision = "float32") -> Prepared:
    """The network made ready for many calls; what is ready already is returned as it is."""
    return net if isinstance(net, Prepared) else Prepared(net, precision)


def logits(
    net: MLPEBM | Prepared, encoded: Tensor, actions: Tensor, precision: Precision = "float32"
) -> Tensor:
    """f [B, N] of encoded [B, E] and actions [B, N, A], without a graph."""
    return prepare(net, precision).logits(encoded, actions)


def logits_and_action_grad(
    net: MLPEBM | Prepared, encoded: Tensor, actions: Tensor, precision: Precision = "float32"
) -> tuple[Tensor, Tensor]:
    """f [B, N] and df/da [B, N, A], without a graph."""
    return prepare(net, precision).logits_and_action_grad(encoded, actions)


# ---------------------------------------------------------------------- with a graph


class _Score(torch.autograd.Function):
    """(f, df/da or None) as a function of first [B, W] and the weights."""

    @staticmethod
    def forward(
        ctx: Any,
        first: Tensor,
        actions: Tensor,
        with_grad: bool,
        kind: Kind,
        dtype: torch.dtype,
        *tensors: Tensor | None,
    ) -> tuple[Tensor, Tensor | None]:
        run = Pass(_rebuild(kind, tensors), dtype).in_dtype()
        f = run.forward(first, actions)
        ctx.run, ctx.actions = run, actions
        ctx.set_materialize_grads(False)
        return f, run.action_grad(actions.shape) if with_grad else None

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, df: Tensor | None, dgrad: Tensor | None) -> Any:
        run, actions = ctx.run, ctx.actions
        b, n, a = actions.shape
        scale = actions.new_zeros(b * n) if df is None else df.reshape(-1)
        u = None if dgrad is None else dgrad.reshape(-1, a)
        rest = _gradients(run, actions, scale, u)
        return rest[0], None, None, None, None, *rest[1:]


def _rebuild(kind: Kind, tensors: Sequence[Tensor | None]) -> Weights:
    w_a, head, head_stream, const, *matrices = tensors
    assert w_a is not None and head is not None and const is not None  # from Weights.tensors
    found = [t for t in matrices if t is not None]
    half = len(found) // 2
    layers, biases = tuple(found[:half]), tuple(found[half:])
    return Weights(kind, w_a, layers, biases, head, head_stream, const, None, None)


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


def fast_score(
    net: MLPEBM, encoded: Tensor, actions: Tensor, precision: Precision = "float32"
) -> Tensor:
    """``net.score(encoded, actions)`` [B, N] with gradients for the weights and ``encoded``.

    encoded [B, E], actions [B, N, A]. Not differentiable a second time (an error says so), and
    actions get no gradient; for the gradient penalty see :func:`fast_score_and_action_grad`.
    """
    dtype = _dtype(precision)
    if not supported(net):
        return net.score(encoded, actions)
    w = weights_of(net)
    first = w.first(encoded)
    return _Score.apply(first, actions.detach(), False, w.kind, dtype, *w.tensors())[0]


def fast_score_and_action_grad(
    net: MLPEBM, encoded: Tensor, actions: Tensor, precision: Precision = "float32"
) -> tuple[Tensor, Tensor]:
    """f [B, N] and df/da [B, N, A], both differentiable (once) by the weights and ``encoded``.

    What a loss with a gradient penalty needs, at the price of little more than :func:`fast_score`.
    """
    dtype = _dtype(precision)
    actions = actions.detach()
    if not supported(net):
        actions = actions.requires_grad_()
        f = net.score(encoded, actions)
        return f, torch.autograd.grad(f.sum(), actions, create_graph=True)[0]
    w = weights_of(net)
    return _Score.apply(w.first(encoded), actions, True, w.kind, dtype, *w.tensors())
