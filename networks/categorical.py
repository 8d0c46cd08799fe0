"""Draws by probability that the host never waits for.

``torch.multinomial`` draws the same numbers, but reads the probabilities to check them, which
would stall a GPU and break a graph.
"""

from __future__ import annotations

import torch


def draw(
    probs: torch.Tensor, num: int = 1, generator: torch.Generator | None = None
) -> torch.Tensor:
    """``num`` independent draws for each row of probabilities [B, N] -> indices int64 [B, num].

    Rows need not sum to one.
    """
    if num == 1:  # the largest p / e with exponentially distributed e
        e = torch.empty_like(probs, memory_format=torch.contiguous_format)
        e.exponential_(generator=generator)
        return (probs / e).argmax(1, keepdim=True)
    cdf = probs.double().cumsum(1)
    shape = (len(probs), num)
    u = torch.rand(shape, generator=generator, device=probs.device, dtype=torch.float64)
    return torch.searchsorted(cdf, u * cdf[:, -1:]).clamp_(max=probs.shape[1] - 1)
