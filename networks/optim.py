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

    Args:
        clip: above 0, a step's gradient has at most this norm, over all parameters.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        clip: float = 0.0,
    ) -> None:
        super().__init__(params, lr=lr, betas=betas, eps=eps, fused=True)
        self.clip = clip
        self._allow_capture()

    def _allow_capture(self) -> None:
        """On a GPU a step may be captured in a CUDA graph: it keeps its count there."""
        for group in self.param_groups:
            group["capturable"] = all(p.is_cuda for p in group["params"])

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As torch's, also for a state from another device."""
        super().load_state_dict(state_dict)
        self._allow_capture()

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
        self._clip([p.grad for _, rows in work for p, *_ in rows])
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
        if self.clip:
            return None
        (group,) = self.param_groups
        states = [self.state[p] for layer in layers for p in layer.params if p is not None]
        operands = (x, target, layers, group, states, follow, tau)
        found = table.find("td_step", *operands)
        return None if found is None else found[1].run(*operands)

    @torch.no_grad()
    def apply(self, grads: Sequence[torch.Tensor | None]) -> None:
        """One step with these gradients of all parameters, in torch operations alone: for graphs.

        Needs :meth:`prepare`. Equal to :meth:`step` except for the last bits.
        """
        self._clip([g for g in grads if g is not None])
        first = 0
        for group in self.param_groups:
            params = group["params"]
            found = zip(params, grads[first : first + len(params)], strict=True)
            rows = [(p, g, self.state[p]) for p, g in found if g is not None]
            if rows:
                self._apply_group(group, rows)
            first += len(params)

    def _clip(self, grads: Sequence[torch.Tensor | None]) -> None:
        """Scale the gradients down to the norm :attr:`clip`, if they have more."""
        there = [g for g in grads if g is not None]
        if self.clip and there:
            norm = torch.stack([g.norm() for g in there]).norm()
            scale = (self.clip / (norm + 1e-6)).clamp(max=1.0)
            torch._foreach_mul_(there, scale)

    def _apply_group(self, group: dict[str, Any], rows: Sequence[tuple[Any, Any, Any]]) -> None:
        params, grads = [p for p, *_ in rows], [g for _, g, _ in rows]
        steps, mean, square = (
            [state[name] for *_, state in rows] for name in ("step", "exp_avg", "exp_avg_sq")
        )
        beta1, beta2 = group["betas"]
        torch._foreach_add_(steps, 1)
        torch._foreach_lerp_(mean, grads, 1 - beta1)
        torch._foreach_mul_(square, beta2)
        torch._foreach_addcmul_(square, grads, grads, 1 - beta2)
        for p, m, v, t in zip(params, mean, square, steps, strict=True):
            root = self._root(group, v, (1 - beta2**t).sqrt())
            p.addcdiv_(m * (-group["lr"] / (1 - beta1**t)), root)

    def _root(self, group: dict[str, Any], v: torch.Tensor, debias: torch.Tensor) -> torch.Tensor:
        """What a step is divided by; ``debias`` is sqrt(1 - beta2^t)."""
        return v.sqrt() / debias + group["eps"]

    def prepare(self) -> None:
        """Make the state that torch makes in the first step, so that a graph finds it."""
        for group in self.param_groups:
            for p in group["params"]:
                if not self.state[p]:
                    zeros = torch.zeros_like(p, memory_format=torch.preserve_format)
                    self.state[p] = {
                        "step": torch.zeros((), dtype=torch.float32, device=p.device),
                        "exp_avg": zeros,
                        "exp_avg_sq": zeros.clone(),
                    }

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


def descend(loss: torch.Tensor, *opts: Adam) -> None:
    """Backward from ``loss``, a scalar, and a step of these optimisers (the last first)."""
    if torch.compiler.is_compiling():
        params = [[p for group in opt.param_groups for p in group["params"]] for opt in opts]
        grads = iter(torch.autograd.grad(loss, [p for ps in params for p in ps], allow_unused=True))
        mine = [[next(grads) for _ in ps] for ps in params]
        for opt, found in zip(reversed(opts), reversed(mine), strict=True):
            opt.apply(found)
        return
    for opt in opts:
        opt.zero_grad(set_to_none=True)
    loss.backward()
    for opt in reversed(opts):
        opt.step()


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
