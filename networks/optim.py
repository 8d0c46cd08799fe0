"""Optimisers: Adam, Adam and learning-rate schedules as Keras computes them, soft updates.

Implicit BC was trained with Keras, which adds epsilon to sqrt(v) *before* the bias correction,
torch after it:

    Keras:  p -= lr * sqrt(1 - b2^t) / (1 - b1^t) * m / (sqrt(v) + eps)
    torch:  p -= lr / (1 - b1^t) * m / (sqrt(v) / sqrt(1 - b2^t) + eps)

so torch's update with eps / sqrt(1 - b2^t) in step t is Keras's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch

from networks import fast
from networks.fast import table

# Keras: warm-up of the Transformer, with its model dimension and number of steps
_WARMUP_DIM, _WARMUP_STEPS = 32, 4000


class Adam(torch.optim.Adam):
    """torch.optim.Adam with the same state, computed by a kernel if one accepts it.

    Equal to torch's fused step except for the last bits. Weight decay, amsgrad and other options
    keep their defaults.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ) -> None:
        super().__init__(params, lr=lr, betas=betas, eps=eps, fused=True)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """As torch's, without its hooks."""
        if not set_to_none:
            return super().zero_grad(set_to_none)
        for group in self.param_groups:
            for p in group["params"]:
                p.grad = None

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> Any:  # type: ignore[override]
        """One step on every parameter that has a gradient."""
        work = [(group, self._with_gradient(group)) for group in self.param_groups]
        found = [table.find("adam", group, rows) for group, rows in work]
        if closure is not None or None in found:
            return super().step(closure)
        for backend, (group, rows) in zip(found, work, strict=True):
            if backend is not None:  # no gradient is None: checked above
                backend[1].run(group, rows)
        return None

    def td_step(
        self,
        x: torch.Tensor,
        target: torch.Tensor,
        layers: Sequence[fast.Layer],
        follow: Sequence[torch.Tensor],
        tau: float,
    ) -> torch.Tensor | None:
        """One step of an ensemble on its squared error, if a kernel takes all of it; else None.

        x float32 [rows, in], target [rows]; layers with one output, whose weights are this
        optimiser's. Then follow <- tau * weights + (1 - tau) * follow, in the order of the layers'
        parameters. Returns the loss: summed over the members, averaged over the rows.
        """
        if self._optimizer_step_pre_hooks or self._optimizer_step_post_hooks:
            return None  # somebody looks at the gradients
        (group,) = self.param_groups
        states = [self.state[p] for layer in layers for p in layer.params if p is not None]
        operands = (x, target, layers, group, states, follow, tau)
        found = table.find("td_step", *operands)
        return None if found is None else found[1].run(*operands)

    def _with_gradient(self, group: dict[str, Any]) -> list[tuple[Any, Any, Any]]:
        """(parameter, gradient, state) of every parameter that has a gradient."""
        return [(p, p.grad, self.state[p]) for p in group["params"] if p.grad is not None]


class KerasAdam(Adam):
    """:class:`Adam` with Keras's epsilon; ``t`` of a group counts its steps."""

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


def soft_update_params(
    net: Sequence[torch.Tensor], target: Sequence[torch.Tensor], tau: float
) -> None:
    """target <- tau * net + (1 - tau) * target, for parameters in the same order."""
    if len(net) != len(target):
        raise ValueError(f"soft_update_params: {len(net)} parameters against {len(target)}")
    fast.soft_update(net, target, tau)
