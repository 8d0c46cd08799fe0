"""Adam's step and the soft update of target networks: one pass over memory each."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch.autograd.graph import increment_version

from networks.fast.cpu import module
from networks.fast.cpu.module import loaded as kernels
from networks.fast.process import threads

Row = tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]


def takes_adam(group: dict[str, Any], rows: Sequence[Row]) -> bool:
    """State in torch's form, one step count for all, contiguous float32 on the CPU."""
    for p, grad, state in rows:
        if not state:  # torch creates it in its own form
            return False
        if not module.fits(p, grad) or not (p.is_contiguous() and grad.is_contiguous()):
            return False
    return len({state["step"].item() for *_, state in rows}) <= 1


def adam(group: dict[str, Any], rows: Sequence[Row]) -> None:
    """One step of Adam on parameters, their gradients and their torch.optim.Adam state."""
    if not rows:
        return
    torch._foreach_add_([state["step"] for *_, state in rows], 1)
    t, (beta1, beta2) = rows[0][2]["step"].item(), group["betas"]
    tensors = [
        kernels().AdamTensor(
            n=p.numel(),
            weight=p.data_ptr(),
            grad=g.data_ptr(),
            exp_avg=state["exp_avg"].data_ptr(),
            exp_avg_sq=state["exp_avg_sq"].data_ptr(),
        )
        for p, g, state in rows
    ]
    kernels().adam(
        tensors,
        step_size=group["lr"] / (1 - beta1**t),
        beta1=beta1,
        beta2=beta2,
        root=math.sqrt(1 - beta2**t),
        eps=group["eps"],
        threads=threads(),
    )
    increment_version([p for p, *_ in rows])


def takes_soft_update(
    net: Sequence[torch.Tensor], target: Sequence[torch.Tensor], tau: float
) -> bool:
    if len(net) != len(target) or any(n.shape != t.shape for n, t in zip(net, target, strict=True)):
        return False
    return module.fits(*net, *target) and all(t.is_contiguous() for t in (*net, *target))


@torch.no_grad()
def soft_update(net: Sequence[torch.Tensor], target: Sequence[torch.Tensor], tau: float) -> None:
    """See ``networks.fast.ops``."""
    tensors = [
        kernels().LerpTensor(n=t.numel(), to=t.data_ptr(), from_=n.data_ptr())
        for n, t in zip(net, target, strict=True)
    ]
    kernels().lerp(tensors, weight=tau, threads=threads())
    increment_version(target)
