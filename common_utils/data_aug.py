"""Random shift augmentation (DrQ), as an exact crop instead of bilinear sampling."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from common_utils import rows


class RandomShiftsAug(nn.Module):
    """Replicate-pad by ``pad`` pixels and crop back at a random place, one per image.

    images [B, C, H, W] of any dtype -> the same shape and dtype. All channels of an image
    get the same shift. Shifts are drawn as the original does (``torch.randint`` of float32
    [B, 1, 1, 2], x before y), so the same torch seed gives the same shifts.
    """

    def __init__(self, pad: int = 4) -> None:
        super().__init__()
        if pad < 0:
            raise ValueError(f"RandomShiftsAug: pad must be 0 or more, got {pad}")
        self.pad = pad

    def draw(
        self, n: int, device: torch.device | str, generator: torch.Generator | None = None
    ) -> torch.Tensor:
        """Shifts int64 [n, 2] as (x, y), each in [0, 2 * pad]."""
        number = torch.float32  # as the original draws them

        def draw(shape: Sequence[int]) -> torch.Tensor:
            most = 2 * self.pad + 1
            return torch.randint(0, most, shape, dtype=number, device=device, generator=generator)

        return rows.drawn(draw, (n, 1, 1, 2)).view(n, 2).long()

    def shift(self, x: torch.Tensor, shifts_xy: torch.Tensor) -> torch.Tensor:
        """out[i, j] = in[clamp(i + sy - pad), clamp(j + sx - pad)] for each image."""
        n, c, h, w = x.shape
        rows = torch.arange(h, device=x.device) - self.pad + shifts_xy[:, 1:]
        cols = torch.arange(w, device=x.device) - self.pad + shifts_xy[:, :1]
        rows, cols = rows.clamp_(0, h - 1), cols.clamp_(0, w - 1)  # [B, H], [B, W]
        pixel = (rows[:, :, None] * w + cols[:, None, :]).view(n, 1, h * w)
        return x.reshape(n, c, h * w).gather(2, pixel.expand(-1, c, -1)).view(n, c, h, w)

    def forward(self, x: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
        """Shift every image by its own random amount."""
        return self.shift(x, self.draw(x.size(0), x.device, generator))
