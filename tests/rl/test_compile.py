"""What an agent computes is one graph for torch.compile, with the kernels' results."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from common_utils.specs import Obs
from rl.q_agent import QAgent
from rl.selection import choose, draw_choice, take
from tests.rl.releases import Small, small

# states; ViT with proprioception; DrQ
CASES = ["small_state", "robomimic_rl/can_ibrl", "metaworld/ibrl_basic"]


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """One graph, forward and backward, run by torch: a second or two instead of a minute."""
    return torch.compile(function, fullgraph=True, backend="aot_eager")


@pytest.fixture(params=CASES)
def it(request: pytest.FixtureRequest) -> Small:
    found = small(request.param)
    # dropout draws other masks in a graph than in the kernels
    found.agent.eval()
    return found


def losses(agent: QAgent, obs: Obs, action: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Of the critic with its encoder, and of the actor."""
    feats = agent.features(obs, augment=False)
    critic = (agent.critic(feats, action) - 1.0).square().sum(dim=-1).mean()
    feats = {k: v.detach() for k, v in feats.items()}
    return critic, -agent.critic.min_q(feats, agent.actor(feats, 0.0).mean).mean()


def gradients(agent: QAgent, of: tuple[torch.Tensor, ...]) -> list[torch.Tensor]:
    agent.zero_grad()
    sum(of, torch.zeros(())).backward()
    return [p.grad.clone() for p in agent.parameters() if p.grad is not None]


def test_losses_and_their_gradients(it: Small) -> None:
    args = (it.agent, it.batch.obs, it.batch.action)
    want = losses(*args)
    want_grads = gradients(it.agent, want)
    got = compiled(losses)(*args)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
    got_grads = gradients(it.agent, got)
    assert len(got_grads) == len(want_grads) > 10
    torch.testing.assert_close(got_grads, want_grads, rtol=1e-4, atol=1e-5)


def decide(
    agent: QAgent, obs: Obs, bc_action: torch.Tensor, draws: Any, members: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """An action of soft IBRL, and the values of the candidates."""
    feats = agent.features(obs, augment=False)
    rl_action = agent.actor(feats, 0.0).mean
    candidates = agent._candidates(rl_action, obs, bc_action)
    q = agent._target_q(feats, candidates, members)
    return take(candidates, choose(q, draws, soft_beta=10.0, eps_greedy=0.5)), q


def test_choices_of_actions_with_numbers_drawn_before(it: Small) -> None:
    agent, bc_action = it.agent, it.batch.bc_action
    assert bc_action is not None
    draws = draw_choice(bc_action.new_zeros(len(bc_action), 2), soft_beta=10.0, eps_greedy=0.5)
    members = [1, 3] if agent.use_state else None
    index = None if members is None else torch.tensor(members)
    with torch.no_grad():
        want = decide(agent, it.batch.obs, bc_action, draws, members)
        got = compiled(decide)(agent, it.batch.obs, bc_action, draws, index)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


def test_members_as_an_index_need_no_graph() -> None:
    found = small("small_state")
    critic, obs, actions = found.agent.critic, found.batch.obs, found.batch.action.unsqueeze(1)
    for members in ([0, 4], [2], [1, 2, 3]):
        got = critic.q(obs, actions, torch.tensor(members))  # type: ignore[arg-type]
        torch.testing.assert_close(got, critic.q(obs, actions, members), rtol=1e-5, atol=1e-6)
