"""RFT, regularised fine-tuning: the actor's BC loss and its weight (the paper's baseline)."""

from __future__ import annotations

from abc import abstractmethod

import torch

from common_utils import ranks, rows
from common_utils.ibrl_utils import eval_mode
from common_utils.specs import Batch, Obs
from rl.actor import Actor, FcActor
from rl.agent import Agent
from rl.critic import Critic, MultiFcQ
from rl.draws import DRAWN_LATER, UpdateDraws


class Regularised(Agent):
    """The parts of an agent that RFT uses: its actor and critic, over shared features."""

    actor: Actor | FcActor
    critic: Critic | MultiFcQ

    @abstractmethod
    def features(self, obs: Obs, augment: bool, shifts: torch.Tensor | None = None) -> Obs:
        """The features of observations that actor and critic read."""


def bc_loss(
    agent: Regularised,
    batch: Batch,
    train_encoder: bool = False,
    draws: UpdateDraws = DRAWN_LATER,
) -> torch.Tensor:
    """Squared error of the actor's mean: summed over action dims, averaged over the batch.

    The encoder gets gradients only in pretraining. Steps behind an episode's end do not count.
    """
    with torch.set_grad_enabled(train_encoder):
        feats = agent.features(batch.obs, True, draws.bc_shifts)
    pred = agent.actor(feats, 0.0).sample(None, agent.rng, draws.bc_noise)
    error = (pred - batch.action.flatten(1)).square()
    if batch.valid is not None:
        error = error.unflatten(1, (batch.valid.size(1), -1)) * batch.valid.unsqueeze(-1)
    return error.flatten(1).sum(dim=-1).mean()


@torch.no_grad()
def bc_ratio(
    agent: Regularised, ref_agent: Regularised, obs: Obs, draws: UpdateDraws = DRAWN_LATER
) -> torch.Tensor:
    """Fraction of demonstration states where the reference agent's action is valued higher."""
    with eval_mode(agent, ref_agent):
        feats = agent.features(obs, augment=False)
        ref_action = ref_agent.actor(ref_agent.features(obs, augment=False), 0.0).mean
        action = agent.actor(feats, 0.0).mean
        q = []
        # two different subsets, as released
        for a, drawn in zip((ref_action, action), draws.ratio_members, strict=True):
            members = agent.critic.draw_members(agent.host_rng) if drawn is None else drawn
            q_a = agent.critic.q(feats, a.unsqueeze(1), members)
            q.append(q_a.min(dim=-1).values)
    ratio = (q[0] > q[1]).float().mean()
    ranks.average([ratio], rows.current())  # it weighs the loss of the whole batch
    return ratio
