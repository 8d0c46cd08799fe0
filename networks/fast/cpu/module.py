"""The C++ module of kernels (csrc/kernels), and which operands it accepts."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from common_utils import rows

try:
    from common_utils import kernels
except ImportError:  # not built: everything works, slower
    kernels = None  # type: ignore[assignment]


def loaded() -> Any:
    """The module, for operations that have already checked that it is there."""
    return kernels


def fits(*tensors: torch.Tensor | None) -> bool:
    """Whether the kernels are there and all tensors are float32 on the CPU."""
    return kernels is not None and all(
        t is None or (t.is_cpu and t.dtype is torch.float32) for t in tensors
    )


def norm_fits(norm: nn.LayerNorm, width: int) -> bool:
    """Whether its parameters exist, each with ``width`` contiguous numbers."""
    gamma, beta = norm.weight, norm.bias
    if gamma is None or beta is None or norm.normalized_shape != (width,):
        return False
    whole = gamma.is_contiguous() and beta.is_contiguous()
    return whole and gamma.shape == beta.shape == (width,)


def has_gemm() -> bool:
    """Whether the kernels have matrix products of their own: they need AVX2 or better."""
    return kernels is not None and kernels.isa() != "base"


def build() -> str:
    """Which of its builds the module runs; "" without the module."""
    return "" if kernels is None else str(kernels.isa())


def address(t: torch.Tensor | None) -> int:
    """The address of a tensor for the kernels; 0 for None."""
    return 0 if t is None else t.data_ptr()


def needs_graph(*tensors: torch.Tensor | None) -> bool:
    """Whether an operation on these must be recorded for a backward pass."""
    if not torch.is_grad_enabled():
        return False
    return any(t is not None and t.requires_grad for t in tensors)


def numbered(count: int) -> dict[str, int]:
    """What dropout calls ``count`` rows, if they are a part of a batch (``common_utils.rows``)."""
    part = rows.current()
    if part is None:
        return {}
    here = part.times(count)
    return {"first_row": here.first, "others": here.total - here.num}


def drop_args(p: float) -> tuple[int, float, int]:
    """Dropout in the kernels' form: how many of 2**32 survive, their scale, the seed."""
    if p <= 0.0:
        return 0, 1.0, 0
    seed = int(torch.randint(2**62, ()))
    return round((1.0 - p) * 2**32), 1.0 / (1.0 - p), seed
