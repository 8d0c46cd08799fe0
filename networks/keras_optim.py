"""Adam and learning-rate schedules as Keras computes them (Implicit BC was trained with these).

Keras adds epsilon to sqrt(v) *before* the bias correction, torch after it:

    Keras:  p -= lr * sqrt(1 - b2^t) / (1 - b1^t) * m / (sqrt(v) + eps)
    torch:  p -= lr / (1 - b1^t) * m / (sqrt(v) / sqrt(1 - b2^t) + eps)

so torch's update with eps / sqrt(1 - b2^t) in step t is Keras's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch

from networks.fast_adam import Adam

# Keras: warm-up of the Transformer, with its model dimension and number of steps
_WARMUP_DIM, _WARMUP_STEPS = 32, 4000


class KerasAdam(Adam):
    """:class:`networks.fast_adam.Adam` with Keras's epsilon; ``t`` of a group counts its steps."""

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-7,
    ) -> None:
        if eps <= 0:
            raise ValueError(f"KerasAdam: eps is {eps}, expected above 0")
        super().__init__(params, lr=lr, betas=betas, eps=eps)
        for group in self.param_groups:
            group["keras_eps"], group["t"] = eps, 0

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update of all groups."""
        for group in self.param_groups:
            group["t"] += 1
            group["eps"] = group["keras_eps"] / math.sqrt(1 - group["betas"][1] ** group["t"])
        return super().step(closure)


def exponential_decay(lr: float, step: int, decay_steps: float, rate: float = 0.99) -> float:
    """lr * rate^(step / decay_steps), continuous; ``step`` counts from 0."""
    return lr * rate ** (step / decay_steps)


def warmup(lr: float, step: int) -> float:
    """lr * 32^-0.5 * min(step^-0.5, step * 4000^-1.5); 0 at step 0."""
    if step == 0:
        return 0.0
    return lr * _WARMUP_DIM**-0.5 * min(step**-0.5, step * _WARMUP_STEPS**-1.5)


def set_lr(optim: torch.optim.Optimizer, lr: float) -> None:
    """Give every group this step size."""
    for group in optim.param_groups:
        group["lr"] = lr
