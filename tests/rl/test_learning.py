"""Best of N proposals (act_method bc), and policies that keep learning from the replay."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch

from bc.generative.flow_policy import FlowPolicy, FlowPolicyConfig
from common_utils.chunks import ChunkConfig
from common_utils.errors import ConfigError
from common_utils.specs import BC_ACTION
from networks.flow import VelocityConfig
from rl.q_agent import QAgent
from tests.rl import naive
from tests.rl.agents import A, LinearPolicy, S, observe, state_agent
from tests.rl.test_horizon import ALL, ChunkPolicy, H, agent, numbers, windows


def flow(length: int = H) -> FlowPolicy:
    cfg = FlowPolicyConfig(
        net=VelocityConfig(hidden_dim=16, num_layer=2), steps=2, chunk=ChunkConfig(length=length)
    )
    torch.manual_seed(5)
    policy = FlowPolicy("state", (S,), 1, A, cfg)
    policy.seed(3)
    return policy


def chunking(bc_lr: float = 1e-3, **options: Any) -> QAgent:
    """Q-chunking: the best of four proposals of a flow policy that keeps learning."""
    made = state_agent(
        num_k=5, horizon=H, act_method="bc", num_bc_samples=4, bc_lr=bc_lr, **options
    )
    made.add_bc_policy(flow())
    return made


def test_the_best_proposal_is_played() -> None:
    it = state_agent(num_k=5, act_method="bc", num_bc_samples=6)
    it.add_bc_policy(LinearPolicy(1, spread=0.1))
    it.eval()
    obs = observe(8, 0)
    proposals = it.propose(obs)
    assert proposals.shape == (8, 6, A)
    target = naive.weights(it, "critic_target")
    candidates = [numbers(proposals[:, i]) for i in range(6)]
    want = naive.best(target, ALL, numbers(obs["state"]), candidates)
    np.testing.assert_allclose(numbers(it.act(obs, eval_mode=True)), want, rtol=1e-6)
    exploring = it.act({**obs, BC_ACTION: proposals}, stddev=0.5)
    np.testing.assert_allclose(numbers(exploring), want, rtol=1e-6, err_msg="it adds no noise")
    names = it.explain({k: v[0] for k, v in obs.items()}).names
    assert names == ("bc0", "bc1", "bc2", "bc3", "bc4", "bc5")


@pytest.mark.parametrize("pessimism", ["min", "mean"])
def test_the_target_is_that_of_the_best_proposal(pessimism: str) -> None:
    it, batch = (
        state_agent(num_k=5, horizon=H, act_method="bc", num_bc_samples=4, pessimism=pessimism),
        windows(),
    )
    it.add_bc_policy(ChunkPolicy(1, spread=0.1))
    state, target = numbers(batch.next_obs["state"]), naive.weights(it, "critic_target")
    values = []
    for i in range(4):
        chunk = numbers(it.propose(batch.next_obs)[:, i])
        members = np.stack([naive.member_q(target, m, state, chunk) for m in ALL])
        values.append(members.min(0) if pessimism == "min" else members.mean(0))
    want = numbers(batch.reward) + numbers(batch.bootstrap) * np.max(values, axis=0)
    before = copy.deepcopy(it.actor.state_dict())
    metrics = it.update(batch, 0.1, update_actor=True)
    assert float(metrics["train/critic_qt"]) == pytest.approx(want.mean(), rel=1e-5)
    assert "train/actor_loss" not in metrics
    assert all(torch.equal(v, before[k]) for k, v in it.actor.state_dict().items())


def test_a_mean_of_the_critics_teaches_the_actor() -> None:
    it, batch = agent("rl", pessimism="mean"), windows()
    feats = it.features(batch.obs, augment=False)
    want = -it.critic(feats, it.actor(feats, 0.0).mean).mean()
    it.cfg.stddev_clip = 0.0
    got = it.update_actor(feats, 0.1)["train/actor_loss"]
    assert float(got) == pytest.approx(float(want.detach()), rel=1e-5)


def test_a_policy_that_learns_follows_the_replay() -> None:
    it, batch = chunking(bc_lr=1e-2), windows()
    policy = it.bc_policies[0]
    assert it.num_stored == 0 and it.num_bc_action == 4 and it.input_keys == ["state"]
    before = copy.deepcopy(policy.state_dict())  # type: ignore[attr-defined]
    losses = [float(it.update(batch, 0.1, True)["train/bc_loss"]) for _ in range(60)]
    assert np.mean(losses[-10:]) < 0.9 * np.mean(losses[:10])
    after = it.state_dict()
    assert any(not torch.equal(after[f"learning.policies.0.{k}"], v) for k, v in before.items())
    assert not policy.training and it.eval().act(observe(2, 0)).shape == (2, A)  # type: ignore[attr-defined]


def test_it_goes_on_as_before() -> None:
    """Weights, moments and the generators of a saved state, in an agent made anew."""
    it, batch = chunking(), windows()
    it.update(batch, 0.1, True)
    other = chunking(seed=1)
    other.load_training_state(copy.deepcopy(it.training_state()))
    for made in (it, other):
        torch.manual_seed(0)
        made.update(batch, 0.1, True)
    mine, theirs = it.state_dict(), other.state_dict()
    assert all(torch.equal(v, theirs[k]) for k, v in mine.items())


def test_steps_behind_the_end_are_not_learned() -> None:
    policy, batch = flow(), windows()
    assert batch.valid is not None
    batch.action[0, 1:] = 100.0  # not seen: behind the end
    with_end = float(policy.loss(batch).detach())
    batch.valid = None
    assert with_end < 10 < float(policy.loss(batch).detach())


def test_frozen_policies_stay_and_others_are_refused() -> None:
    frozen = agent()
    assert frozen.num_stored == 1 and not frozen.learning and "bc" not in frozen.optimizers()
    with pytest.raises(ConfigError, match="bc_lr: 0.001: FlowPolicy learns chunks of 2, expected"):
        state_agent(horizon=H, bc_lr=1e-3).add_bc_policy(flow(2))
