"""IBRL bootstrapped by policies that sample: EBM and MDN propose, the critic chooses."""

from __future__ import annotations

from typing import Any

import torch

from bc.ibc.ebm_policy import EbmPolicy, EbmPolicyConfig
from bc.ibc.mdn_policy import MdnPolicy, MdnPolicyConfig
from bc.ibc.mse_policy import MsePolicy, MsePolicyConfig
from bc.ibc.samplers import LangevinConfig
from networks.ibc_mlp import MDNConfig, MLPConfig
from rl.q_agent import QAgent
from tests.rl.agents import A, S, state_agent


def policies() -> dict[str, Any]:
    torch.manual_seed(0)
    net = MLPConfig(width=16, depth=2, rate=0.0)
    ebm = EbmPolicyConfig(net=net, num_action_samples=32, langevin=LangevinConfig(num_iterations=3))
    mdn = MdnPolicyConfig(net=MDNConfig(width=16, depth=2, rate=0.0))
    return {
        "ebm": EbmPolicy("state", (S,), 1, A, ebm),
        "mdn": MdnPolicy("state", (S,), 1, A, mdn),
        "mse": MsePolicy("state", (S,), 1, A, MsePolicyConfig(net=net)),
    }


def agent_with(name: str, num: int = 4) -> QAgent:
    agent = state_agent(act_method="ibrl", num_bc_samples=num, num_k=5)
    agent.add_bc_policy(policies()[name])
    return agent.eval()


OBS = {"state": torch.linspace(-1, 1, 3 * S).view(3, S)}


def test_samples_come_from_the_agents_generator_and_resume() -> None:
    for name in ("ebm", "mdn"):
        agent = agent_with(name)
        before = agent.rng.get_state()
        first = agent.propose_bc(OBS)
        assert first.shape == (3, 4, A) and not torch.equal(first[:, 0], first[:, 1])
        assert not torch.equal(agent.propose_bc(OBS), first)
        agent.rng.set_state(before)
        assert torch.equal(agent.propose_bc(OBS), first)


def test_evaluation_repeats_for_an_episodes_generator() -> None:
    for name, samples in (("ebm", True), ("mdn", True), ("mse", False)):
        agent = agent_with(name)
        assert agent.stochastic_eval == samples
        if not samples:
            continue
        before = agent.rng.get_state()
        one = {k: v[0] for k, v in OBS.items()}
        a, b = (
            agent.act(one, eval_mode=True, generator=torch.Generator().manual_seed(5))
            for _ in range(2)
        )
        assert torch.equal(a, b)
        # evaluating does not disturb training
        assert torch.equal(before, agent.rng.get_state())


def test_the_critic_chooses_among_the_proposals_and_the_rl_action() -> None:
    agent = agent_with("ebm", num=8)
    proposals = agent.propose_bc(OBS)
    cached = OBS | {"bc_action": proposals}
    action = agent.act(cached, eval_mode=True, cpu=True)
    feats = agent._features(OBS, False)
    rl = agent.actor(feats, 0.0).mean.detach()
    candidates = torch.cat([rl.unsqueeze(1), proposals], dim=1)
    q = agent._target_q_candidates(feats, candidates, None)
    expected = candidates[torch.arange(3), q.argmax(1)]
    torch.testing.assert_close(action, expected)


def test_one_deterministic_sample_changes_nothing() -> None:
    """An explicit policy draws nothing, so its proposals leave plain IBRL's numbers alone."""
    agent = agent_with("mse", num=1)
    before = agent.rng.get_state()
    proposal = agent.propose_bc(OBS)
    assert torch.equal(before, agent.rng.get_state())
    assert torch.equal(proposal[:, 0], agent.bc_policies[0].act(OBS))
