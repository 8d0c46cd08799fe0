"""Adam's step and the soft update of target networks: one pass over memory each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.autograd.graph import increment_version

from networks.fast.cpu import module
from networks.fast.cpu.module import loaded as kernels
from networks.fast.process import threads

State = dict[str, torch.Tensor]
Row = tuple[torch.Tensor, torch.Tensor, State]


def state_fits(p: torch.Tensor, state: State) -> bool:
    """Whether torch has made the state of this parameter, in the form that the kernel knows."""
    if not state or not p.is_contiguous():  # torch creates it in its own form
        return False
    return module.fits(p, state["step"])


def takes_adam(group: dict[str, Any], rows: Sequence[Row]) -> bool:
    """State in torch's form, contiguous float32 on the CPU."""
    return all(
        state_fits(p, state) and module.fits(grad) and grad.is_contiguous()
        for p, grad, state in rows
    )


def rule_of(group: dict[str, Any]) -> Any:
    """A group's settings in the kernel's form."""
    beta1, beta2 = group["betas"]
    return kernels().AdamRule(lr=group["lr"], beta1=beta1, beta2=beta2, eps=group["eps"])


def adam(group: dict[str, Any], rows: Sequence[Row]) -> None:
    """One step of Adam on parameters, their gradients and their torch.optim.Adam state."""
    tensors = [
        kernels().AdamTensor(
            n=p.numel(),
            weight=p.data_ptr(),
            grad=g.data_ptr(),
            exp_avg=state["exp_avg"].data_ptr(),
            exp_avg_sq=state["exp_avg_sq"].data_ptr(),
            step=state["step"].data_ptr(),
        )
        for p, g, state in rows
    ]
    kernels().adam(tensors, rule_of(group), threads=threads())
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
