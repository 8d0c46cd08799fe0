"""A policy's loss with its gradients, a function of tensors for ``networks.graphs``."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from bc.base import BasePolicy


class Gradients(NamedTuple):
    """The loss, detached; its metrics by name; a gradient for each trained parameter."""

    loss: torch.Tensor
    metrics: dict[str, torch.Tensor]
    of: tuple[torch.Tensor | None, ...]


def trained(policy: BasePolicy) -> list[torch.Tensor]:
    """The parameters that training moves."""
    return [p for p in policy.parameters() if p.requires_grad]


def loss_and_gradients(policy: BasePolicy, batch: Any) -> Gradients:
    """Of one batch; nothing is stored in the parameters."""
    loss = policy.loss(batch)
    grads = torch.autograd.grad(loss, trained(policy), allow_unused=True)
    return Gradients(loss.detach(), dict(policy.metrics), grads)
