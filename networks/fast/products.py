"""Float32 matrix products on the CPU by the library that was measured to be the fastest.

That is MKL (torch's own choice), oneDNN, or the kernels' own product. Forward pass and gradients
are separate choices (``choice``): a library that is twice as fast in one may be slower in another.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from networks.fast import choice
from networks.fast.cpu import gemm, module
from networks.fast.table import Kernel

# Products with a side below these are bound by memory: preparing them costs more than it gains.
_MIN_GEMM_ROWS = 16
_MIN_GEMM_WIDTH = 64


@lru_cache(maxsize=1)
def has_onednn() -> bool:
    """Whether this build of torch has oneDNN, under the names used here."""
    return (
        torch.backends.mkldnn.is_available()
        and all(
            hasattr(torch.ops.mkldnn, f"_{what}_pointwise") for what in ("linear", "convolution")
        )
        and hasattr(torch._C._nn, "mkldnn_reorder_conv2d_weight")
    )


def available(library: str) -> bool:
    """Whether this library (of ``choice.PRODUCTS``) is there."""
    return {"mkl": True, "onednn": has_onednn(), "kernels": module.has_gemm()}[library]


def _libraries(rows: int) -> dict[str, str]:
    """Part of a layer's products -> the library that computes it, for so many rows."""
    chosen = choice.layer(rows).items()
    return {part: by if available(by) else "mkl" for part, by in chosen}


def _wants(x: torch.Tensor, w: torch.Tensor, rows: int) -> bool:
    """Whether another library than torch's own computes at least one of the products."""
    if rows < _MIN_GEMM_ROWS or min(w.shape[-2:]) < _MIN_GEMM_WIDTH:
        return False
    if not (x.dtype == w.dtype == torch.float32 and x.is_cpu and w.is_cpu):
        return False
    by = _libraries(rows)
    used = set(by.values()) if torch.is_grad_enabled() else {by["forward"]}
    return used != {"mkl"}


def _dense(t: torch.Tensor) -> torch.Tensor:
    """t [rows, columns] with no gaps between its rows (or its columns, if it is transposed).

    oneDNN multiplies operands with gaps, such as some columns of a wider weight, by its
    reference code, hundreds of times slower than the copy made here.
    """
    return t if t.is_contiguous() or t.t().is_contiguous() else t.contiguous()


def product(
    library: str, a: torch.Tensor, b: torch.Tensor, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """a [m, k] @ b[n, k]^T (+ bias [n]) by "mkl", "onednn" or "kernels"."""
    if library == "kernels":
        return gemm.product(a, b, bias)
    if library == "onednn":
        return torch.ops.mkldnn._linear_pointwise(_dense(a), _dense(b), bias, "none", [], "")
    return torch.mm(a, b.t()) if bias is None else torch.addmm(bias, a, b.t())


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, w: torch.Tensor, b: torch.Tensor | None) -> torch.Tensor:
        ctx.save_for_backward(x, w)
        ctx.has_bias, ctx.by = b is not None, _libraries(x.size(0))
        return product(ctx.by["forward"], x, w, b)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: torch.Tensor) -> Any:
        x, w = ctx.saved_tensors
        g = g.contiguous()
        gx = gw = None
        if ctx.needs_input_grad[0]:
            gx = product(ctx.by["input gradient"], g, w.t())
        if ctx.needs_input_grad[1]:
            gw = product(ctx.by["weight gradient"], g.t(), x.t())
        gb = g.sum(0) if ctx.has_bias and ctx.needs_input_grad[2] else None
        return gx, gw, gb


def _batched(library: str, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """a [M, m, k] @ b [M, k, n]."""
    if library == "mkl":
        return torch.bmm(a, b)
    pairs = zip(a, b, strict=True)
    return torch.stack([product(library, one, other.t()) for one, other in pairs])


class _Ensemble(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x, w)
        ctx.by = _libraries(x.size(1))
        return _batched(ctx.by["forward"], x, w)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: torch.Tensor) -> Any:
        x, w = ctx.saved_tensors
        gx = gw = None
        if ctx.needs_input_grad[0]:
            gx = _batched(ctx.by["input gradient"], g, w.mT)
        if ctx.needs_input_grad[1]:
            gw = _batched(ctx.by["weight gradient"], x.mT, g)
        return gx, gw


def _takes_linear(x: torch.Tensor, w: torch.Tensor, b: torch.Tensor | None) -> bool:
    return _wants(x, w, x.numel() // max(x.size(-1), 1))


def _linear(x: torch.Tensor, w: torch.Tensor, b: torch.Tensor | None) -> torch.Tensor:
    y = _Linear.apply(x.reshape(-1, x.size(-1)), w, b)
    return y.view(*x.shape[:-1], w.size(0))


def _takes_ensemble(x: torch.Tensor, w: torch.Tensor) -> bool:
    return _wants(x, w, x.size(-2))


def _ensemble_matmul(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    return _Ensemble.apply(x.expand(w.size(0), -1, -1), w)


def _takes_conv2d(
    x: torch.Tensor, w: torch.Tensor, b: torch.Tensor | None, stride: Any, padding: Any
) -> bool:
    """What torch computes by im2col and MKL: a few pictures, small kernels, on one thread."""
    return (
        choice.current()["convolution"]["of one picture"] == "onednn"
        and x.dim() == 4
        and 0 < x.size(0) < _MIN_GEMM_ROWS
        and x.dtype == w.dtype == torch.float32
        and x.device.type == w.device.type == "cpu"
        and has_onednn()
    )


def conv2d(
    x: torch.Tensor, w: torch.Tensor, b: torch.Tensor | None, stride: Any, padding: Any
) -> torch.Tensor:
    """See ``networks.fast.ops``. A single picture's result is in channels-last layout for weights
    that are frozen: they are then kept in oneDNN's own layout.
    """
    if w.requires_grad or (torch.is_grad_enabled() and x.requires_grad):
        return torch.mkldnn_convolution(x, w, b, padding, stride, (1, 1), 1)
    mine = _in_own_layout(x, w, stride, padding)
    return torch.ops.mkldnn._convolution_pointwise(
        x, mine, b, padding, stride, (1, 1), 1, "none", [], ""
    )


def _in_own_layout(x: torch.Tensor, w: torch.Tensor, stride: Any, padding: Any) -> torch.Tensor:
    """The weight as oneDNN wants it, made when it has changed: for one picture, that takes as long
    as the convolution.
    """
    key = (w._version, w.data_ptr(), tuple(x.shape[1:]))
    known = getattr(w, "_onednn", None)
    if known is None or known[0] != key:
        make: Any = torch._C._nn.mkldnn_reorder_conv2d_weight
        known = key, make(w.to_mkldnn(), padding, stride, (1, 1), 1, list(x.shape))
        w._onednn = known  # type: ignore[attr-defined]
    return known[1]


OPERATIONS = {
    "conv2d": Kernel(_takes_conv2d, conv2d),
    "linear": Kernel(_takes_linear, _linear),
    "ensemble_matmul": Kernel(_takes_ensemble, _ensemble_matmul),
}
