"""Dropout whose masks belong to the rows of a batch, and one whose masks cost little on a CPU."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from common_utils import rows

_INT64_MIN = torch.iinfo(torch.int64).min


def dropout(x: torch.Tensor, p: float, axis: int = 0) -> torch.Tensor:
    """``F.dropout(x, p)``; of a part of a batch (``common_utils.rows``, along ``axis``), with the
    masks that its rows have in the whole."""
    if p == 0 or rows.current() is None:
        return F.dropout(x, p)

    def draw(shape: Sequence[int]) -> torch.Tensor:
        return F.dropout(torch.ones(shape, dtype=x.dtype, device=x.device), p)

    return x * rows.drawn(draw, x.shape, axis)


class RowDropout(nn.Dropout):
    """``nn.Dropout`` by :func:`dropout`, on inputs whose first axis is that of the batch."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return dropout(x, self.p) if self.training else x


class FastDropout(nn.Dropout):
    """``nn.Dropout``, with masks cut from 64 random bits at a time on the CPU.

    torch draws one number per element there, serially, which costs more than the layers of a
    narrow network; four masks of 16 bits from one draw are a quarter of that. The rate is
    rounded to a multiple of 2^-16. Draws come from torch's global generator.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training or self.p == 0:
            return x
        if not x.is_cpu:
            return dropout(x, self.p)
        dropped = round(self.p * 2**16)

        def draw(shape: Sequence[int]) -> torch.Tensor:
            num = math.prod(shape)
            draws = torch.empty((num + 3) // 4, dtype=torch.int64).random_(_INT64_MIN, None)
            return draws.view(torch.int16)[:num].view(shape) >= dropped - 2**15

        kept = rows.drawn(draw, x.shape)
        return x * kept.to(x.dtype).mul_(2**16 / (2**16 - dropped))
