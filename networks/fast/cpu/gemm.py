"""The kernels' own matrix product, for float32 operands with any gaps between rows."""

from __future__ import annotations

import torch

from networks.fast.cpu.module import address
from networks.fast.cpu.module import loaded as kernels
from networks.fast.process import threads


def _stored(t: torch.Tensor) -> tuple[torch.Tensor, int, bool]:
    """A matrix as the kernel reads it, how far its rows are apart, whether it is transposed."""
    if t.stride(1) == 1 and t.stride(0) >= t.size(1):
        return t, t.stride(0), False
    if t.stride(0) == 1 and t.stride(1) >= t.size(0):
        return t, t.stride(1), True
    t = t.contiguous()
    return t, t.size(1), False


def product(a: torch.Tensor, b: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """a [m, k] @ b[n, k]^T (+ bias [n]); no gradient."""
    (m, k), n = a.shape, b.size(0)
    c = a.new_empty(m, n)
    if c.numel() == 0 or k == 0:
        return c.zero_() if bias is None else c.copy_(bias.expand(m, n))
    a, lda, ta = _stored(a)
    b, ldb, tb = _stored(b.t())
    bias = None if bias is None else bias.contiguous()
    operands = kernels().Gemm(
        m=m, n=n, k=k, a=a.data_ptr(), lda=lda, ta=ta, b=b.data_ptr(), ldb=ldb, tb=tb,
        bias=address(bias),
    )  # fmt: skip
    kernels().gemm(operands, c=c.data_ptr(), threads=threads())
    return c
