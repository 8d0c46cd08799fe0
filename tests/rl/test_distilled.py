"""Actors that a flow policy teaches (flow Q-learning, QC-FQL)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from common_utils.errors import ConfigError
from common_utils.specs import CLOCK
from rl.agent import RunFacts
from rl.q_agent import QAgent
from rl.q_agent_config import QAgentConfig
from tests.rl import naive
from tests.rl.agents import A, LinearPolicy, observe, state_agent
from tests.rl.test_horizon import ALL, H, W, numbers, windows
from tests.rl.test_learning import flow

ALPHA = 10.0


def agent(method: str = "rl", **options: Any) -> QAgent:
    made = state_agent(num_k=5, horizon=H, act_method=method, distill=ALPHA, **options)
    made.add_bc_policy(flow().eval())
    return made


def mapped(it: QAgent, module: str, state: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """The actor's action of observation and noise, slowly."""
    return naive.actor_mean(naive.weights(it, module), np.concatenate([state, noise], axis=1))


def test_the_targets_and_the_actors_loss_are_those_of_a_slow_oracle() -> None:
    it, batch = agent(), windows()
    gen = torch.Generator().manual_seed(0)  # the agent's seed
    noise, next_noise, explored, actors = (torch.randn(8, W, generator=gen) for _ in range(4))
    state, nexts = numbers(batch.obs["state"]), numbers(batch.next_obs["state"])
    target = naive.weights(it, "critic_target")
    mean = mapped(it, "actor_target", nexts, numbers(next_noise))
    candidates = [naive.sample(mean, numbers(explored), 0.1, 0.3)]
    args = target, nexts, candidates, numbers(batch.reward), numbers(batch.bootstrap), 5, 5
    want = naive.td_targets(*args)[ALL, ALL]
    own = mapped(it, "actor", state, numbers(noise))
    ends = numbers(it.bc_policies[0].follow(batch.obs, noise.unsqueeze(1))[:, 0])  # type: ignore[attr-defined]
    metrics = it.update(batch, 0.1, update_actor=True)
    assert float(metrics["train/critic_qt"]) == pytest.approx(want.mean(), rel=1e-5)
    distance = np.square(own - ends).mean()
    assert float(metrics["train/distill_loss"]) == pytest.approx(distance, rel=1e-5)
    critic = naive.weights(it, "critic")  # after its step
    played = naive.sample(own, numbers(actors), 0.1, 0.3)
    value = naive.min_q(critic, ALL, state, played)
    assert float(metrics["train/actor_loss"]) == pytest.approx(-value.mean(), rel=1e-4)


def test_following_noise_is_what_the_policy_proposes() -> None:
    """Step by step from the same noise, as ``propose`` does; and ddpm, which draws more, is not."""
    policy, obs = flow().eval(), observe(4, 0)
    proposed = policy.propose(obs, 2, horizon=H, generator=torch.Generator().manual_seed(7))
    noise = torch.randn(4, 2, W, generator=torch.Generator().manual_seed(7))
    torch.testing.assert_close(policy.follow(obs, noise), proposed)
    policy.cfg.process = "ddpm"
    with pytest.raises(ValueError, match="ddpm does not end at one place, expected ddim"):
        policy.follow(obs, noise)


def test_the_actor_learns_where_the_flow_ends() -> None:
    it, batch = agent(lr=3e-3), windows()
    it.cfg.distill = 1e4  # the critics hardly matter
    losses = [float(it.update(batch, 0.1, True)["train/distill_loss"]) for _ in range(200)]
    assert np.mean(losses[-10:]) < 0.5 * np.mean(losses[:10])


def test_it_acts_by_noise_of_its_generator() -> None:
    it, obs = agent().eval(), observe(2, 0)
    assert it.stochastic_eval
    first, same, other = (
        it.act(obs, eval_mode=True, generator=torch.Generator().manual_seed(s)) for s in (1, 1, 2)
    )
    assert torch.equal(first, same) and not torch.equal(first, other)
    timed = {**obs, CLOCK: torch.tensor([[0, 0], [1, 0]])}
    assert it.act(timed, eval_mode=True).shape == (2, A) and it.act_chunk(obs).shape == (2, H, A)
    both = agent("ibrl", num_bc_samples=2).eval()
    assert both.explain({k: v[0] for k, v in obs.items()}).names == ("rl", "bc0", "bc1")


def test_what_cannot_teach_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    run = RunFacts(True, True, False, False)
    for options, message in [
        ({"residual": 0.1}, "distill: 10, expected 0 with residual"),
        ({"compile": "default"}, "distill: 10, expected 0 with compile default"),
    ]:
        with pytest.raises(ValueError, match=message):
            QAgentConfig(distill=ALPHA, **options).check(run)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="distill: 10, expected 0 with add_bc_loss and"):
        QAgentConfig(distill=ALPHA).check(run._replace(pretrains=True))
    with monkeypatch.context() as patch, pytest.raises(ConfigError, match="several ranks"):
        patch.setattr("common_utils.ranks.world", lambda: 2)
        agent()
    made = state_agent(distill=ALPHA)
    with pytest.raises(ConfigError, match="distill: found LinearPolicy to learn from, expected"):
        made.add_bc_policy(LinearPolicy(1))
    made = state_agent(distill=ALPHA, horizon=2)
    with pytest.raises(ConfigError, match="found FlowPolicy over chunks of 3 to learn from"):
        made.add_bc_policy(flow())
