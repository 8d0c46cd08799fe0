"""A mixture of diagonal Gaussians: density, samples, and its best centre."""

from __future__ import annotations

import math

import torch

from networks import categorical

_HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)


class GaussianMixture:
    """sum_k softmax(logits)_k N(loc_k, diag(scale_k^2)), for each row of a batch.

    logits [B, K], loc and scale [B, K, A]; scale is the standard deviation.
    """

    def __init__(self, logits: torch.Tensor, loc: torch.Tensor, scale: torch.Tensor) -> None:
        if loc.shape != scale.shape or logits.shape != loc.shape[:-1]:
            shapes = [list(x.shape) for x in (logits, loc, scale)]
            raise ValueError(f"needs logits [B, K], loc and scale [B, K, A], got {shapes}")
        self.logits, self.loc, self.scale = logits, loc, scale

    def log_prob(self, action: torch.Tensor) -> torch.Tensor:
        """log density of action [B, A] -> [B]."""
        return self.log_probs(action.unsqueeze(1)).squeeze(1)

    def log_probs(self, actions: torch.Tensor) -> torch.Tensor:
        """log density of several actions of each row, [B, N, A] -> [B, N]."""
        scale = self.scale.unsqueeze(1)
        z = (actions.unsqueeze(2) - self.loc.unsqueeze(1)) / scale
        each = (-0.5 * z.square() - scale.log() - _HALF_LOG_2PI).sum(-1)
        return torch.logsumexp(each + self.logits.log_softmax(-1).unsqueeze(1), dim=-1)

    @property
    def mean(self) -> torch.Tensor:
        """Expectation, [B, A]; between the modes, so rarely a good action."""
        return (self.logits.softmax(-1).unsqueeze(-1) * self.loc).sum(1)

    @torch.no_grad()
    def sample(self, num: int = 1, generator: torch.Generator | None = None) -> torch.Tensor:
        """``num`` independent draws for each row, [B, num, A]."""
        weights = self.logits.softmax(-1)
        which = categorical.draw(weights, num, generator)
        index = which.unsqueeze(-1).expand(-1, -1, self.loc.size(-1))
        loc, scale = self.loc.gather(1, index), self.scale.gather(1, index)
        noise = torch.randn(loc.shape, generator=generator, device=loc.device, dtype=loc.dtype)
        return loc + scale * noise

    @torch.no_grad()
    def greedy(self) -> torch.Tensor:
        """The component centre at which the mixture's density is highest, [B, A]."""
        best = self.log_probs(self.loc).argmax(-1)
        return self.loc[torch.arange(best.size(0), device=best.device), best]
