"""Losses of energy-based policies (Florence et al. 2021, section 2 and appendix B.3).

How the original computes them: docs/reference/ibc.md#losses.

A network gives logits f(o, a), minus the energy: higher is better. Everywhere B is the batch,
n the number of counter-examples, and the true action is the *last* of the n + 1 columns.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from common_utils.config_types import Flag
from common_utils.ranges import NotNegativeNumber

LossType = Literal["info_nce", "cd", "clipped_cd", "soft_clipped_cd", "cd_kl"]
NormType = Literal["1", "2", "inf", "none"]

# clipped_cd ignores counter-examples within this squared distance from the true action
_CLIP_DISTANCE = 0.2


def info_nce(
    logits: torch.Tensor, temperature: float = 1.0, prob_clip: float = 1e-7
) -> torch.Tensor:
    """Cross entropy of the true action among the n + 1; logits [B, n+1] -> [B] (equation 3).

    ``prob_clip`` above 0 computes it as Keras's KL divergence does: both distributions are
    clipped to [prob_clip, 1], so a true action less probable than that gives a constant (16.1
    for 1e-7) without gradient, and each wrong one adds prob_clip * log(prob_clip / p).
    """
    log_prob = torch.log_softmax(logits / temperature, dim=1)
    if prob_clip == 0:
        return -log_prob[:, -1]
    # clamping the logarithm keeps log_softmax's gradients and stops the same ones as Keras
    floor = float(np.float32(math.log(np.float32(prob_clip))))  # as torch computes it
    log_prob = log_prob.clamp(min=floor)
    wrong = prob_clip * (floor - log_prob[:, :-1]).sum(1)
    return wrong - log_prob[:, -1]


def _distances(actions: torch.Tensor, true: torch.Tensor) -> torch.Tensor:
    return (actions - true.unsqueeze(1)).square().sum(2)


def contrastive_divergence(logits: torch.Tensor) -> torch.Tensor:
    """Mean logit of the counter-examples minus that of the true action; [B, n+1] -> [B]."""
    return logits[:, :-1].mean(1) - logits[:, -1]


def clipped_cd(
    logits: torch.Tensor, actions: torch.Tensor, true: torch.Tensor, *, soft: bool = False
) -> torch.Tensor:
    """Contrastive divergence over counter-examples [B, n, A] that are not near ``true`` [B, A].

    ``soft``: near ones are trained towards a logit that falls with the squared distance.
    """
    distance = _distances(actions, true)
    below = logits[:, -1:] - logits[:, :-1]
    near = distance <= _CLIP_DISTANCE
    loss = torch.where(near, 0.0, -below).mean(1)
    if soft:
        loss = loss + torch.where(near, (below - distance).abs(), 0.0).mean(1)
    return loss


def kl_part(logits: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
    """Mean over pairs of counter-examples of -f'(a_j) + exp(-0.1 |a_j - a_k|^2), a scalar per
    row; ``logits`` [B, n] come from the network with its weights' gradients stopped.
    """
    kernel = torch.exp(-0.1 * torch.cdist(actions, actions).square())
    return kernel.mean((1, 2)) - logits.mean(1)


def ebm_loss(
    kind: LossType,
    logits: torch.Tensor,
    actions: torch.Tensor,
    true: torch.Tensor,
    *,
    temperature: float = 1.0,
    prob_clip: float = 1e-7,
    copied_logits: torch.Tensor | None = None,
) -> torch.Tensor:
    """The loss per example [B].

    Args:
        logits: float [B, n+1], the true action's last.
        actions: counter-examples float [B, n, A], normalised like ``true`` [B, A].
        copied_logits: for cd_kl, logits [B, n] of the counter-examples by a network whose
            weights take no gradient.
    """
    if logits.dim() != 2 or logits.shape[1] != actions.shape[1] + 1:
        raise ValueError(
            f"ebm_loss: logits must be [B, n+1] for actions [B, n, A], got {list(logits.shape)} "
            f"and {list(actions.shape)}"
        )
    if kind == "info_nce":
        return info_nce(logits, temperature, prob_clip)
    if kind == "cd":
        return contrastive_divergence(logits)
    if kind == "cd_kl":
        if copied_logits is None:
            raise ValueError("ebm_loss: cd_kl needs copied_logits")
        return contrastive_divergence(logits) + kl_part(copied_logits, actions)
    return clipped_cd(logits, actions, true, soft=kind == "soft_clipped_cd")


@dataclass
class GradPenaltyConfig:
    """Penalty on large action gradients of the energy (appendix B.3.1)."""

    # 1: add it to the loss
    add_grad_penalty: Flag = 1
    # norm of the gradient over the action's dimensions
    grad_norm_type: NormType = "inf"
    # only the part of a norm above this counts; null: all of it
    grad_margin: NotNegativeNumber | None = 1.0
    # 1: square the penalty
    square_grad_penalty: Flag = 1
    # factor of the penalty
    grad_loss_weight: NotNegativeNumber = 1.0
    # 1: at the counter-examples and the true action; 0: at all points of the Langevin chain
    only_apply_final_grad_penalty: Flag = 1


def grad_norm(grad: torch.Tensor, kind: NormType) -> torch.Tensor:
    """Norm over the last axis: [..., A] -> [...]; zeros for "none"."""
    if kind == "none":
        return grad.new_zeros(grad.shape[:-1])
    return torch.linalg.vector_norm(grad, float(kind), dim=-1)


def penalty_of_norms(norms: torch.Tensor, cfg: GradPenaltyConfig) -> torch.Tensor:
    """Norms [B, N] -> penalty [B]: hinge, square, mean."""
    x = norms
    if cfg.grad_margin is not None:
        x = (x - cfg.grad_margin).clamp(0.0, 1e10)
    if cfg.square_grad_penalty:
        x = x.square()
    return x.mean(1) * cfg.grad_loss_weight


def grad_penalty(grad: torch.Tensor, cfg: GradPenaltyConfig) -> torch.Tensor:
    """Penalty [B] of action gradients df/da [B, N, A], which carry a graph."""
    return penalty_of_norms(grad_norm(grad, cfg.grad_norm_type), cfg)
