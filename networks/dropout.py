"""Dropout whose masks cost little on a CPU."""

from __future__ import annotations

import torch
from torch import nn

_INT64_MIN = torch.iinfo(torch.int64).min


class FastDropout(nn.Dropout):
    """``nn.Dropout``, with masks cut from 64 random bits at a time on the CPU.

    torch draws one number per element there, serially, which costs more than the layers of a
    narrow network; four masks of 16 bits from one draw are a quarter of that. The rate is
    rounded to a multiple of 2^-16. Draws come from torch's global generator.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training or self.p == 0 or not x.is_cpu:
            return super().forward(x)
        draws = torch.empty((x.numel() + 3) // 4, dtype=torch.int64).random_(_INT64_MIN, None)
        dropped = round(self.p * 2**16)
        kept = draws.view(torch.int16)[: x.numel()].view(x.shape) >= dropped - 2**15
        return x * kept.to(x.dtype).mul_(2**16 / (2**16 - dropped))
