"""What follows the gradients: Adam's step and the soft update of target networks.

Both are bound by memory: one pass each. The C++ kernels (csrc/kernels_impl.cc) share them among
``fast.threads()`` threads; what they don't cover (GPU, other dtypes) torch does.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch

from networks import fast


class Adam(torch.optim.Adam):
    """torch.optim.Adam, with the same state, by the C++ kernel where it fits.

    Equal to torch's fused step but for the last bits. Weight decay, amsgrad and the other options
    stay as they are by default.
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
        """As torch's, without its wrappings."""
        if not set_to_none:
            return super().zero_grad(set_to_none)
        for group in self.param_groups:
            for p in group["params"]:
                p.grad = None

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> Any:  # type: ignore[override]
        """One step on every parameter that has a gradient."""
        plans = [self._plan(group) for group in self.param_groups]
        if closure is not None or None in plans:
            return super().step(closure)
        for group, plan in zip(self.param_groups, plans, strict=True):
            if plan:
                _adam(group, plan)
        return None

    def _plan(self, group: dict[str, Any]) -> list[_Row] | None:
        """Parameters with gradient and state, where the kernel can take all of them."""
        rows = [(p, p.grad, self.state[p]) for p in group["params"] if p.grad is not None]
        for p, grad, state in rows:
            if not state:  # torch makes it, in its own form
                return None
            if not fast.fits(p, grad) or not (p.is_contiguous() and grad.is_contiguous()):
                return None
        return rows if len({state["step"].item() for *_, state in rows}) <= 1 else None


_Row = tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]


def _adam(group: dict[str, Any], rows: list[_Row]) -> None:
    assert fast.kernels is not None
    torch._foreach_add_([state["step"] for *_, state in rows], 1)
    t, (beta1, beta2) = rows[0][2]["step"].item(), group["betas"]
    fast.kernels.adam(
        [
            (
                p.numel(),
                p.data_ptr(),
                g.data_ptr(),
                state["exp_avg"].data_ptr(),
                state["exp_avg_sq"].data_ptr(),
            )
            for p, g, state in rows
        ],
        group["lr"] / (1 - beta1**t),
        beta1,
        beta2,
        math.sqrt(1 - beta2**t),
        group["eps"],
        fast.threads(),
    )


@torch.no_grad()
def soft_update(net: Sequence[torch.Tensor], target: Sequence[torch.Tensor], tau: float) -> None:
    """target <- tau * net + (1 - tau) * target, for parameters in the same order."""
    if len(net) != len(target):
        raise ValueError(f"soft_update: {len(net)} parameters against {len(target)}")
    if not fast.fits(*net, *target) or not all(t.is_contiguous() for t in (*net, *target)):
        torch._foreach_lerp_(list(target), list(net), tau)
        return
    assert fast.kernels is not None
    fast.kernels.lerp(
        [(t.numel(), t.data_ptr(), n.data_ptr()) for n, t in zip(net, target, strict=True)],
        tau,
        fast.threads(),
    )
