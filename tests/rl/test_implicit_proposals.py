"""IBRL bootstrapped by policies that sample: EBM and MDN propose, the critic chooses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from bc.explicit.mdn_policy import MdnPolicy, MdnPolicyConfig
from bc.explicit.mse_policy import MsePolicy, MsePolicyConfig
from bc.ibc.ebm_policy import EbmPolicy, EbmPolicyConfig
from bc.ibc.samplers import LangevinConfig
from common_utils.specs import Obs
from networks.ibc.mlp import MDNConfig, MLPConfig
from rl.q_agent import QAgent
from tests.rl.agents import A, S, make_batch, observe, state_agent, with_cache


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
        first = agent.propose(OBS)
        assert first.shape == (3, 4, A) and not torch.equal(first[:, 0], first[:, 1])
        assert not torch.equal(agent.propose(OBS), first)
        agent.rng.set_state(before)
        assert torch.equal(agent.propose(OBS), first)


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
    proposals = agent.propose(OBS)
    cached = OBS | {"bc_action": proposals}
    action = agent.act(cached, eval_mode=True, cpu=True)
    feats = agent.features(OBS, False)
    rl = agent.actor(feats, 0.0).mean.detach()
    candidates = torch.cat([rl.unsqueeze(1), proposals], dim=1)
    q = agent._target_q(feats, candidates, None)
    expected = candidates[torch.arange(3), q.argmax(1)]
    torch.testing.assert_close(action, expected)


def test_one_deterministic_sample_changes_nothing() -> None:
    """An explicit policy draws nothing, so its proposals leave plain IBRL's numbers alone."""
    agent = agent_with("mse", num=1)
    before = agent.rng.get_state()
    proposal = agent.propose(OBS)
    assert torch.equal(before, agent.rng.get_state())
    assert torch.equal(proposal[:, 0], agent.bc_policies[0].act(OBS))


class OneAction(nn.Module):
    """The same network as a policy that knows one action per observation and nothing else."""

    stochastic_eval = False

    def __init__(self, policy: MsePolicy) -> None:
        super().__init__()
        self.policy = policy

    def propose(self, obs: Obs, n: int, *, generator: Any = None) -> torch.Tensor:
        assert n == 1
        state = self.policy.features({"state": obs["state"]})
        return self.policy.to_env(self.policy.net(state)).detach().unsqueeze(1)


@pytest.mark.parametrize("act_method", ["ibrl", "ibrl_soft"])
@pytest.mark.parametrize("cached", [True, False])
def test_one_explicit_sample_is_plain_ibrl_bit_for_bit(act_method: str, cached: bool) -> None:
    """Acting, updating and every weight, with dropout, noise and random subsets of critics."""
    mse = policies()["mse"].eval()
    agents = [
        state_agent(act_method=act_method, num_bc_samples=1, dropout=0.5, num_k=2) for _ in range(2)
    ]
    agents[0].add_bc_policy(mse)
    agents[1].add_bc_policy(OneAction(mse))
    for agent in agents:
        torch.manual_seed(7)  # of dropout
        actions = []
        for step in range(6):
            agent.eval()
            actions.append(agent.act(observe(4, 50 + step), stddev=0.1))
            agent.train()
            batch = make_batch(16, seed=step)
            agent.update(with_cache(agent, batch) if cached else batch, 0.1, step % 2 == 1)
        agent.actions = torch.stack(actions)
    assert torch.equal(agents[0].actions, agents[1].actions)
    a, b = (x.training_state() for x in agents)
    assert [k for k in a["model"] if not torch.equal(a["model"][k], b["model"][k])] == []
    assert torch.equal(a["rng"], b["rng"]) and torch.equal(a["host_rng"], b["host_rng"])
    # and its rule is the published one: BC's action where the critics value it more
    agent, obs = agents[0].eval(), observe(64, 3)
    if act_method == "ibrl":
        cfg = agent.critic_target.cfg
        cfg.num_k = cfg.num_q
        feats = agent.features(obs, False)
        rl, bc = agent.actor(feats, 0.0).mean.detach(), mse.act(obs)
        q_rl, q_bc = (agent._target_q(feats, a.unsqueeze(1), None).squeeze(1) for a in (rl, bc))
        assert 0 < (q_bc > q_rl).sum() < 64
        expected = torch.where((q_bc > q_rl).unsqueeze(1), bc, rl)
        assert torch.equal(agent.act(obs, eval_mode=True), expected)


def test_stored_proposals_are_not_made_again() -> None:
    """An update asks the policy for nothing when the batch carries its proposals."""
    agent = agent_with("ebm", num=4).train()
    batch = with_cache(agent, make_batch(8))

    def propose(*args: object, **kwargs: object) -> torch.Tensor:
        raise AssertionError("asked for proposals")

    agent.bc_policies[0].propose = propose
    agent.update(batch, 0.1, True)
    with pytest.raises(AssertionError, match="asked for proposals"):
        agent.update(make_batch(8), 0.1, True)
