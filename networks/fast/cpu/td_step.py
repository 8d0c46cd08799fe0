"""A whole step of a critic ensemble in one call: values, loss, gradients, Adam, soft update.

The same kernels as ``mlp`` and ``optim`` in the same order, so the same bits. What it saves is
the Python, the autograd graph and the tensors between them: a tenth of an update of networks of
256 units on batches of 256, a quarter on smaller batches.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch.autograd.graph import increment_version

from networks.fast.cpu import mlp, module
from networks.fast.cpu.module import loaded as kernels
from networks.fast.cpu.optim import State, rule_of, state_fits
from networks.fast.layer import Layer
from networks.fast.process import threads


def takes_td_step(
    x: torch.Tensor,
    target: torch.Tensor,
    layers: Sequence[Layer],
    group: dict[str, Any],
    states: Sequence[State],
    follow: Sequence[torch.Tensor],
    tau: float,
) -> bool:
    """What ``perceptron`` takes, without dropout, with one output, and Adam's state made."""
    if x.requires_grad or target.shape != x.shape[:1] or not target.is_contiguous():
        return False
    last = layers[-1]
    if last.hidden or last.sizes[1] != 1 or any(layer.p > 0.0 for layer in layers):
        return False
    params = _params(layers)
    if not len(params) == len(states) == len(follow) or not module.fits(target, *follow):
        return False
    if not all(
        t.is_contiguous() and t.shape == p.shape for p, t in zip(params, follow, strict=True)
    ):
        return False
    if not all(state_fits(p, state) for p, state in zip(params, states, strict=True)):
        return False
    return mlp.takes_perceptron(x, layers, None)


def _params(layers: Sequence[Layer]) -> list[torch.Tensor]:
    return [p for layer in layers for p in layer.params if p is not None]


@torch.no_grad()
def td_step(
    x: torch.Tensor,
    target: torch.Tensor,
    layers: Sequence[Layer],
    group: dict[str, Any],
    states: Sequence[State],
    follow: Sequence[torch.Tensor],
    tau: float,
) -> torch.Tensor:
    """See ``networks.mlp.EnsembleMLP.td_step``."""
    params = _params(layers)
    described = tuple([mlp.described(layer) for layer in layers])
    adam = [
        (p.numel(), p.data_ptr(), *[s[key].data_ptr() for key in ("exp_avg", "exp_avg_sq", "step")])
        for p, s in zip(params, states, strict=True)
    ]
    at = tuple([t.data_ptr() for t in follow])
    x = x.contiguous()
    loss = _known(described, layers[0].num, tuple(adam), at).run(
        rows=x.size(0),
        x=x.data_ptr(),
        target=target.data_ptr(),
        rule=rule_of(group),
        tau=tau,
        threads=threads(),
    )
    increment_version([*params, *follow])
    return torch.tensor(loss)


# The key contains all of the description, so that tensors which are moved, replaced or freed are
# never mistaken for others. Each has memory for gradients: few are kept.
@lru_cache(maxsize=4)
def _known(
    layers: tuple[tuple[Any, ...], ...],
    members: int,
    weights: tuple[tuple[int, ...], ...],
    follow: tuple[int, ...],
) -> Any:
    """The step in the kernels' form. ``weights``: elements, addresses of the weight, its moments
    and its step count; ``follow``: the addresses of the target's weights.
    """
    tensors = [
        kernels().AdamTensor(n=n, weight=p, grad=0, exp_avg=m, exp_avg_sq=v, step=t)
        for n, p, m, v, t in weights
    ]
    return kernels().TdStep(
        layers=[mlp.named(*layer) for layer in layers],
        members=members,
        weights=tensors,
        follow=list(follow),
    )
