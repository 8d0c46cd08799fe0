"""Float32 matrix products on the CPU by oneDNN, where MKL (torch's own choice) is slower."""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from common_utils.errors import UserError
from networks.fast.table import Kernel

# Products with a side below these are bound by memory, and oneDNN's preparation costs more than it
# gains.
_MIN_GEMM_ROWS = 16
_MIN_GEMM_WIDTH = 64


def gemm_mode() -> str:
    """``IBRL_GEMM``: auto, mkl or onednn."""
    mode = os.environ.get("IBRL_GEMM", "auto")
    if mode not in ("auto", "mkl", "onednn"):
        raise UserError(f"IBRL_GEMM: {mode!r}, expected auto, mkl or onednn")
    return mode


@lru_cache(maxsize=1)
def gemm_backend() -> str:
    """ "mkl" (torch's default) or "onednn", for float32 matrix products on the CPU.

    ``IBRL_GEMM`` names it; auto, the default, takes oneDNN on AMD, where MKL runs at half its
    speed, and torch's default elsewhere. Decided by the CPU's vendor, never by timing, so that
    runs repeat bit for bit.
    """
    mode = gemm_mode()
    if mode == "auto":
        try:
            vendor = Path("/proc/cpuinfo").read_text()[:2000]
        except OSError:
            vendor = ""
        mode = "onednn" if "AuthenticAMD" in vendor else "mkl"
    has_onednn = torch.backends.mkldnn.is_available() and hasattr(
        torch.ops.mkldnn, "_linear_pointwise"
    )
    return mode if has_onednn else "mkl"


def _wants(x: torch.Tensor, w: torch.Tensor, rows: int) -> bool:
    return (
        gemm_backend() == "onednn"
        and rows >= _MIN_GEMM_ROWS
        and min(w.shape[-2:]) >= _MIN_GEMM_WIDTH
        and x.dtype == w.dtype == torch.float32
        and x.device.type == w.device.type == "cpu"
    )


def _dense(t: torch.Tensor) -> torch.Tensor:
    """t [rows, columns] with no gaps between its rows (or its columns, if it is transposed).

    oneDNN multiplies operands with gaps, such as some columns of a wider weight, by its
    reference code, hundreds of times slower than the copy made here.
    """
    return t if t.is_contiguous() or t.t().is_contiguous() else t.contiguous()


def _gemm_nt(a: torch.Tensor, b: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """a [m, k] @ b[n, k]^T (+ bias [n]) by oneDNN."""
    return torch.ops.mkldnn._linear_pointwise(_dense(a), _dense(b), bias, "none", [], "")


class _OneDnnLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, w: torch.Tensor, b: torch.Tensor | None) -> torch.Tensor:
        ctx.save_for_backward(x, w)
        ctx.has_bias = b is not None
        return _gemm_nt(x, w, b)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: torch.Tensor) -> Any:
        x, w = ctx.saved_tensors
        g = g.contiguous()
        gx = _gemm_nt(g, w.t()) if ctx.needs_input_grad[0] else None
        gw = _gemm_nt(g.t(), x.t()) if ctx.needs_input_grad[1] else None
        gb = g.sum(0) if ctx.has_bias and ctx.needs_input_grad[2] else None
        return gx, gw, gb


class _OneDnnEnsemble(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x, w)
        return torch.stack([_gemm_nt(a, b.t()) for a, b in zip(x, w, strict=True)])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: torch.Tensor) -> Any:
        x, w = ctx.saved_tensors
        gx = gw = None
        if ctx.needs_input_grad[0]:
            gx = torch.stack([_gemm_nt(a, b) for a, b in zip(g, w, strict=True)])
        if ctx.needs_input_grad[1]:
            gw = torch.stack([_gemm_nt(a.t(), b.t()) for a, b in zip(x, g, strict=True)])
        return gx, gw


def _takes_linear(x: torch.Tensor, w: torch.Tensor, b: torch.Tensor | None) -> bool:
    return _wants(x, w, x.numel() // max(x.size(-1), 1))


def _linear(x: torch.Tensor, w: torch.Tensor, b: torch.Tensor | None) -> torch.Tensor:
    y = _OneDnnLinear.apply(x.reshape(-1, x.size(-1)), w, b)
    return y.view(*x.shape[:-1], w.size(0))


def _takes_ensemble(x: torch.Tensor, w: torch.Tensor) -> bool:
    return _wants(x, w, x.size(-2))


def _ensemble_matmul(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    return _OneDnnEnsemble.apply(x.expand(w.size(0), -1, -1), w)


OPERATIONS = {
    "linear": Kernel(_takes_linear, _linear),
    "ensemble_matmul": Kernel(_takes_ensemble, _ensemble_matmul),
}
