"""The hot operations of networks, in their fast form where there is one.

Every function here has a plain torch form, which is used on a GPU, for other dtypes, and where
the C++ module was not built; the tests hold the two against each other. What the fast forms
save is passes over memory: a normalised, rectified layer is one pass instead of four, and the
spatial embedding never stores its [B, rows, emb] intermediate results. Their gradients cannot
be differentiated again.

Switches (environment): ``IBRL_GEMM`` = auto, mkl or onednn says who multiplies float32 matrices
on the CPU (see :func:`gemm_backend`); ``IBRL_MALLOC`` = keep or system (see
:func:`keep_freed_memory`).
"""

from __future__ import annotations

import ctypes
import os
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.function import once_differentiable

try:
    from common_utils import kernels
except ImportError:  # not built: everything works, slower
    kernels = None  # type: ignore[assignment]

# Products with a side below these are bound by memory, and oneDNN's preparations cost more than
# it gains.
_MIN_GEMM_ROWS = 16
_MIN_GEMM_WIDTH = 64


@lru_cache(maxsize=1)
def keep_freed_memory() -> bool:
    """Have glibc keep big freed blocks for reuse instead of returning them to the system.

    Tensors above 32 MB are otherwise mapped anew, page by page, at every operation; that is
    a third to a half of the time of an update from pixels. The process then keeps its peak
    memory until it ends. Returns whether it was done: not with ``IBRL_MALLOC=system``, nor with
    another C library.
    """
    mode = os.environ.get("IBRL_MALLOC", "keep")
    if mode not in ("keep", "system"):
        raise ValueError(f"IBRL_MALLOC: '{mode}', expected keep or system")
    if mode == "system" or not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    trim_threshold, top_pad, mmap_max = -1, -2, -4  # names of <malloc.h>
    settings = ((mmap_max, 0), (trim_threshold, 2**31 - 1), (top_pad, 2**26))
    return all(mallopt(name, value) == 1 for name, value in settings)


_threads = 0


def use_threads(num: int) -> None:
    """Run the C++ kernels on so many threads; 0, the default: as many as torch's operations.

    Results are the same bits with any number. To give small networks two cores set this to 2 and
    leave torch at one thread: between operations torch's OpenMP threads keep spinning on the core
    that the kernels' thread wants (measured: slower than one thread).
    """
    if num < 0:
        raise ValueError(f"threads: {num}, expected 0 or more")
    global _threads
    _threads = num


def threads() -> int:
    """On how many threads the C++ kernels run."""
    return _threads or torch.get_num_threads()


def _gemm_mode() -> str:
    mode = os.environ.get("IBRL_GEMM", "auto")
    if mode not in ("auto", "mkl", "onednn"):
        raise ValueError(f"IBRL_GEMM: '{mode}', expected auto, mkl or onednn")
    return mode


@lru_cache(maxsize=1)
def gemm_backend() -> str:
    """ "mkl" (torch's default) or "onednn", for float32 matrix products on the CPU.

    ``IBRL_GEMM`` names it; auto, the default, takes oneDNN on AMD, where MKL runs at half its
    speed, and torch's default elsewhere. Decided by the CPU's vendor, never by timing, so that
    runs repeat bit for bit.
    """
    mode = _gemm_mode()
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


def own_gemm() -> bool:
    """Whether perceptrons run by the kernels' own matrix products (``networks.fast_mlp``).

    Yes unless ``IBRL_GEMM`` names somebody else, or the CPU has no AVX2 or better for them.
    """
    return kernels is not None and _gemm_mode() == "auto" and kernels.isa() != "base"


def _wants_onednn(x: torch.Tensor, w: torch.Tensor, rows: int) -> bool:
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


def linear(x: torch.Tensor, w: torch.Tensor, b: torch.Tensor | None = None) -> torch.Tensor:
    """x [..., in], w [out, in], b [out] or None -> [..., out]."""
    rows = x.numel() // max(x.size(-1), 1)
    if not _wants_onednn(x, w, rows):
        return F.linear(x, w, b)
    y = _OneDnnLinear.apply(x.reshape(rows, -1), w, b)
    return y.view(*x.shape[:-1], w.size(0))


def ensemble_matmul(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    """x [rows, in] or [M, rows, in], w [M, in, out] -> [M, rows, out]."""
    if _wants_onednn(x, w, x.size(-2)):
        return _OneDnnEnsemble.apply(x.expand(w.size(0), -1, -1), w)
    return torch.bmm(x, w) if x.dim() == 3 else torch.matmul(x, w)


class Linear(nn.Linear):
    """nn.Linear on the chosen matrix product."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x [..., in] -> [..., out]."""
        return linear(x, self.weight, self.bias)


# ---------------------------------------------------------------------- fused elementwise


def fits(*tensors: torch.Tensor | None) -> bool:
    """Whether the kernels are there and all tensors are float32 on the CPU."""
    return kernels is not None and all(
        t is None or (t.is_cpu and t.dtype is torch.float32) for t in tensors
    )


def address(t: torch.Tensor | None) -> int:
    """What the kernels take for a tensor; 0 for None."""
    return 0 if t is None else t.data_ptr()


def needs_graph(*tensors: torch.Tensor | None) -> bool:
    """Whether an operation on these has to be recorded for a backward pass."""
    if not torch.is_grad_enabled():
        return False
    return any(t is not None and t.requires_grad for t in tensors)


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
        kernels.norm_relu_grad(
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
    kernels.norm_relu(
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


def drop_args(p: float) -> tuple[int, float, int]:
    """Dropout as the kernels take it: how many of 2**32 survive, their scale, the seed."""
    if p <= 0.0:
        return 0, 1.0, 0
    seed = int(torch.randint(2**62, ()))
    return round((1.0 - p) * 2**32), 1.0 / (1.0 - p), seed


def norm_relu(
    x: torch.Tensor,
    norm: nn.LayerNorm | None = None,
    bias: torch.Tensor | None = None,
    p: float = 0.0,
) -> torch.Tensor:
    """relu(dropout(norm(x + bias), p)) in one pass.

    x float [..., width]; bias None, or [M, 1] or [M, width] for x [M, ..., width] (one row per
    member of an ensemble); p the dropout probability, 0 outside training. On the CPU the mask
    comes from a counter-based generator keyed by one number of torch's global generator (and
    is drawn again from it in the backward pass instead of being stored); a probability is
    exact to 2**-32. A shape is the same as x's.
    """
    gamma, beta = (None, None) if norm is None else (norm.weight, norm.bias)
    plain = norm is not None and (gamma is None or beta is None)
    if plain or p >= 1.0 or x.numel() == 0 or not fits(x, bias, gamma, beta):
        if bias is not None:
            x = x + bias.view(bias.size(0), *[1] * (x.dim() - 2), bias.size(1))
        return F.relu(F.dropout(x if norm is None else norm(x), p))
    drop = drop_args(p)
    x = x.contiguous()
    bias = None if bias is None else bias.contiguous()
    eps = 0.0 if norm is None else norm.eps
    if needs_graph(x, bias, gamma, beta):
        return _NormRelu.apply(x, bias, gamma, beta, eps, drop)
    return _norm_relu(x, bias, gamma, beta, eps, drop)[0]


# ---------------------------------------------------------------------- spatial embedding


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
        kernels.spatial_grad(
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
    kernels.spatial(
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


def spatial_embed(
    shared: torch.Tensor, action: torch.Tensor, norm: nn.LayerNorm, weight: torch.Tensor
) -> torch.Tensor:
    """sum over rows of relu(norm(shared + action)) * weight, for every candidate.

    shared float [B, rows, emb] (the observation's part of the projection), action [B, N, emb]
    (a candidate's part, bias included), weight [1, rows, emb] -> [B, N, emb]. The largest
    tensor of a pixel update is ``shared``; it is read once and nothing of its size is written.
    """
    if shared.numel() == 0 or not fits(shared, action, norm.weight, norm.bias, weight):
        # one candidate at a time bounds the memory
        zs = [(F.relu(norm(shared + a[:, None])) * weight).sum(1) for a in action.unbind(1)]
        return torch.stack(zs, dim=1)
    args = (shared.contiguous(), action.contiguous(), norm.weight, norm.bias, weight, norm.eps)
    if needs_graph(*args[:5]):
        return _Spatial.apply(*args)
    return _spatial(*args)[0]
