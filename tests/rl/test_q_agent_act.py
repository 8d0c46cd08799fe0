"""Acting: docs/reference/ibrl.md#acting, and Hu et al. 2023, eq. 2 (actor proposal)."""

from __future__ import annotations

import random
from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch

from common_utils.specs import BC_ACTION, Obs
from rl import q_agent
from rl.q_agent import QAgent
from tests.rl import naive
from tests.rl.agents import (
    CAMERA,
    A,
    LinearPolicy,
    P,
    make_batch,
    observe,
    pixel_agent,
    state_agent,
)

ALL = tuple(range(5))


def ibrl_agent(method: str = "ibrl", policies: int = 1, **options: Any) -> QAgent:
    """All members choose (num_k = num_q), so that only the tested randomness is left."""
    agent = state_agent(num_k=5, act_method=method, **options)
    for i in range(policies):
        agent.add_bc_policy(LinearPolicy(i, spread=0.2))
    return agent.eval()


def candidates_of(agent: QAgent, obs: Obs) -> list[np.ndarray]:
    """[rl, bc, bc, ...]: the actor's mean first, then policy by policy."""
    s = obs["state"].double().numpy()
    out = [naive.actor_mean(naive.weights(agent, "actor"), s)]
    for policy in agent.bc_policies:
        proposed = policy.propose(obs, agent.cfg.num_bc_samples).detach().double().numpy()
        out += [proposed[:, k] for k in range(agent.cfg.num_bc_samples)]
    return out


def test_rl_acts_by_its_mean_and_explores_by_clamped_noise() -> None:
    agent = state_agent().eval()
    obs = observe(6, 1)
    mean = naive.actor_mean(naive.weights(agent, "actor"), obs["state"].double().numpy())
    got = agent.act(obs, eval_mode=True, stddev=0.7)
    np.testing.assert_allclose(got.numpy(), mean, rtol=1e-4, atol=1e-6)

    noise = torch.randn(6, A, generator=torch.Generator().manual_seed(3)).double().numpy()
    noisy = agent.act(obs, stddev=0.7, generator=torch.Generator().manual_seed(3))
    want = naive.sample(mean, noise, 0.7)  # acting does not clip the noise itself
    np.testing.assert_allclose(noisy.numpy(), want, rtol=1e-4, atol=1e-5)
    assert np.abs(noise * 0.7).max() > agent.cfg.stddev_clip
    wild = agent.act(obs, stddev=50.0)
    assert wild.abs().max() < 1.0


@pytest.mark.parametrize("policies, samples", [(1, 1), (2, 1), (1, 3), (2, 3)])
def test_ibrl_takes_the_candidate_that_the_target_critic_values_most(
    policies: int, samples: int
) -> None:
    agent = ibrl_agent(policies=policies, num_bc_samples=samples)
    obs = observe(40, 2)
    candidates = candidates_of(agent, obs)
    assert len(candidates) == 1 + policies * samples == 1 + agent.num_bc_action
    target = naive.weights(agent, "critic_target")
    want = naive.best(target, ALL, obs["state"].double().numpy(), candidates)
    got = agent.act(obs, eval_mode=True).numpy()
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)
    # the choice is a real one here: RL wins in some states, BC in others
    wins = np.isclose(got, candidates[0], atol=1e-5).all(axis=1)
    assert 0 < wins.sum() < len(wins)
    # and the online critic would have chosen otherwise somewhere
    online = naive.weights(agent, "critic")
    other = naive.best(online, ALL, obs["state"].double().numpy(), candidates)
    assert not np.allclose(other, want, atol=1e-4)


def test_two_candidates_are_the_published_two_action_rule() -> None:
    """Naive IBRL for one BC policy, with the random pair of members it may have drawn."""
    agent = state_agent(num_k=2, act_method="ibrl").eval()
    agent.add_bc_policy(LinearPolicy(0))
    target = naive.weights(agent, "critic_target")
    seen = set()
    for step in range(30):
        obs = observe(12, 50 + step)
        s = obs["state"].double().numpy()
        rl, bc = candidates_of(agent, obs)
        got = agent.act(obs, eval_mode=True).numpy()
        fits = []
        for members in combinations(range(5), 2):
            q_rl, q_bc = naive.min_q(target, members, s, rl), naive.min_q(target, members, s, bc)
            want = np.where((q_bc > q_rl)[:, None], bc, rl)
            if np.allclose(got, want, rtol=1e-4, atol=1e-5):
                fits.append(members)
        assert fits, "no pair of members explains the choice"
        seen.update(fits if len(fits) == 1 else [])
    assert len(seen) > 1, "the members are drawn anew for each call"


def test_exploring_ibrl_compares_the_noisy_action() -> None:
    agent = ibrl_agent()
    obs = observe(30, 4)
    _, bc = candidates_of(agent, obs)
    s = obs["state"].double().numpy()
    noise = torch.randn(30, A, generator=torch.Generator().manual_seed(9)).double().numpy()
    rl = naive.sample(naive.actor_mean(naive.weights(agent, "actor"), s), noise, 0.3)
    want = naive.best(naive.weights(agent, "critic_target"), ALL, s, [rl, bc])
    got = agent.act(obs, stddev=0.3, generator=torch.Generator().manual_seed(9)).numpy()
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)
    assert np.isclose(got, bc, atol=1e-5).all(axis=1).any()  # never noise on the BC action


@pytest.mark.parametrize("eps", [0.0, 0.6])
def test_eps_greedy_explores_candidates_but_not_in_evaluation(eps: float) -> None:
    agent = ibrl_agent(ibrl_eps_greedy=eps)
    one = observe(1, 5)
    obs = {"state": one["state"].expand(8000, -1)}
    s = one["state"].double().numpy()
    rl, bc = candidates_of(agent, one)
    greedy = naive.best(naive.weights(agent, "critic_target"), ALL, s, [rl, bc])
    other = bc if np.allclose(greedy, rl) else rl
    acted = agent.act(obs, stddev=0.0).numpy()
    share = np.isclose(acted, greedy, atol=1e-5).all(axis=1).mean()
    assert np.isclose(acted, other, atol=1e-5).all(axis=1).mean() == pytest.approx(1 - share)
    assert share == pytest.approx(eps + (1 - eps) / 2, abs=5 * 0.5 / np.sqrt(8000))
    assert np.allclose(agent.act(obs, eval_mode=True).numpy(), greedy, atol=1e-5)


@pytest.mark.parametrize("eval_mode", [False, True])
def test_soft_ibrl_samples_by_value_also_in_evaluation(eval_mode: bool) -> None:
    beta, n = 3.0, 12000
    agent = ibrl_agent("ibrl_soft", num_bc_samples=2, soft_ibrl_beta=beta)
    one = observe(1, 6)
    s = one["state"].double().numpy()
    candidates = candidates_of(agent, one)
    target = naive.weights(agent, "critic_target")
    q = np.array([naive.min_q(target, ALL, s, c)[0] for c in candidates])
    want = np.exp(beta * q) / np.exp(beta * q).sum()
    acted = agent.act({"state": one["state"].expand(n, -1)}, eval_mode=eval_mode).numpy()
    for c, p in zip(candidates, want, strict=True):
        share = np.isclose(acted, c, atol=1e-5).all(axis=1).mean()
        assert share == pytest.approx(p, abs=5 * np.sqrt(p * (1 - p) / n))


def test_act_method_can_be_overridden_for_a_while() -> None:
    agent = ibrl_agent("ibrl_soft", soft_ibrl_beta=0.0)
    obs = observe(40, 7)
    with agent.override_act_method("ibrl"):
        greedy = agent.act(obs, eval_mode=True)
        assert torch.equal(greedy, agent.act(obs, eval_mode=True))
    assert agent.act_method == "ibrl_soft"
    assert not torch.equal(greedy, agent.act(obs, eval_mode=True))
    with pytest.raises(ValueError, match="greedy"), agent.override_act_method("greedy"):
        pass


@pytest.mark.parametrize("method", ["ibrl", "ibrl_soft"])
def test_cached_bc_actions_give_the_action_of_recomputed_ones(method: str) -> None:
    for agent, pixels in ((ibrl_agent(method), False), (pixel_agent(act_method=method), True)):
        if pixels:
            agent.add_bc_policy(LinearPolicy(0, key="prop"))
        agent.eval()
        policy = agent.bc_policies[0]
        obs = observe(8, 8, pixels)
        cached = obs | {BC_ACTION: agent.propose(obs)}
        calls = policy.calls
        generators = [torch.Generator().manual_seed(1) for _ in range(2)]
        fresh = agent.act(obs, stddev=0.2, generator=generators[0])
        assert policy.calls == calls + 1
        again = agent.act(cached, stddev=0.2, generator=generators[1])
        assert policy.calls == calls + 1, "the cached proposals were not used"
        assert torch.equal(fresh, again)
        one = {k: v[0] for k, v in cached.items()}
        assert agent.act(one, eval_mode=True).shape == (A,)


def test_proposals_are_ordered_policy_by_policy() -> None:
    agent = ibrl_agent(policies=2, num_bc_samples=3)
    obs = observe(5, 9)
    got = agent.propose(obs)
    want = torch.cat([p.propose(obs, 3) for p in agent.bc_policies], dim=1)
    assert got.shape == (5, 6, A)
    assert torch.equal(got, want)


@pytest.mark.parametrize("method", ["rl", "ibrl", "ibrl_soft"])
@pytest.mark.parametrize("pixels", [False, True])
def test_act_leaves_the_callers_dict_alone_and_takes_both_ranks(method: str, pixels: bool) -> None:
    agent = (pixel_agent if pixels else state_agent)(act_method=method)
    agent.add_bc_policy(LinearPolicy(0, key="prop" if pixels else "state"))
    agent.eval()
    obs = {k: v[0] for k, v in observe(1, 10, pixels).items()} | {"unread": torch.ones(2)}
    before = {k: v.clone() for k, v in obs.items()}
    identity = {k: id(v) for k, v in obs.items()}
    action = agent.act(obs, eval_mode=True)
    assert obs.keys() == before.keys()
    for k in before:
        assert id(obs[k]) == identity[k]
        assert torch.equal(obs[k], before[k])
        assert obs[k].shape == before[k].shape
    assert action.shape == (A,)
    assert action.dtype == torch.float32
    assert not action.requires_grad
    with agent.override_act_method("rl"):
        batched = {k: v.unsqueeze(0) for k, v in obs.items()}
        single = agent.act(obs, eval_mode=True)
        torch.testing.assert_close(agent.act(batched, eval_mode=True)[0], single)


@pytest.mark.parametrize("pixels", [False, True])
@pytest.mark.parametrize("method", ["rl", "ibrl", "ibrl_soft"])
def test_evaluation_draws_nothing_that_training_uses(method: str, pixels: bool) -> None:
    make = pixel_agent if pixels else state_agent
    agents = [make(act_method=method, dropout=0.5) for _ in range(2)]
    key = "prop" if pixels else "state"
    for agent in agents:
        agent.add_bc_policy(LinearPolicy(0, key=key))
    evaluated, plain = agents

    def state() -> list[Any]:
        tensors = [evaluated.rng.get_state(), evaluated.host_rng.get_state(), torch.get_rng_state()]
        return [t.tolist() for t in tensors] + [str(np.random.get_state()), random.getstate()]

    before = state()
    evaluated.eval()
    for _ in range(3):
        obs = observe(4, 11, pixels)
        evaluated.value(obs, evaluated.act(obs, eval_mode=True, stddev=0.5))
    evaluated.train()
    assert state() == before

    results = []
    for agent in agents:  # and so training goes on as if there had been no evaluation
        torch.manual_seed(1)
        agent.update(make_batch(4, pixels=pixels), 0.1, True)
        agent.eval()
        results.append(agent.act(observe(4, 12, pixels), stddev=0.3))
    assert torch.equal(*results)


def test_exploration_is_reproducible_and_follows_the_seed() -> None:
    obs = observe(4, 13)

    def acted(seed: int) -> torch.Tensor:
        agent = state_agent().eval()
        agent.rng.manual_seed(seed)
        return agent.act(obs, stddev=0.5)

    assert torch.equal(acted(1), acted(1))
    assert not torch.equal(acted(1), acted(2))
    built = [state_agent(seed=s).eval() for s in (3, 3, 4)]
    a, b, c = (x.act(obs, stddev=0.5) for x in built)
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


def test_stochastic_eval_says_whether_evaluation_is_random() -> None:
    assert not state_agent().stochastic_eval
    assert state_agent(act_method="ibrl", num_k=2).stochastic_eval  # a random subset scores
    assert not state_agent(act_method="ibrl", num_k=5).stochastic_eval
    assert state_agent(act_method="ibrl_soft", num_k=5).stochastic_eval
    assert not pixel_agent(act_method="ibrl").stochastic_eval
    assert pixel_agent(act_method="ibrl_soft").stochastic_eval


def test_a_pixel_agent_without_proprioception_needs_none() -> None:
    agent = pixel_agent(act_method="ibrl", use_prop=0).eval()
    image = {CAMERA: observe(2, 14, pixels=True)[CAMERA]}
    cached = image | {BC_ACTION: torch.zeros(2, 1, A)}
    assert agent.act(cached, eval_mode=True).shape == (2, A)
    assert agent.input_keys == [CAMERA]
    assert pixel_agent().input_keys == [CAMERA, "prop"]
    assert state_agent().input_keys == ["state"]


def test_misuse_is_refused() -> None:
    agent = state_agent(act_method="ibrl")
    with pytest.raises(RuntimeError, match="train mode"):
        agent.act(observe(1, 0))
    agent.eval()
    with pytest.raises(RuntimeError, match=r"add_bc_policy.*bc_policy"):
        agent.act(observe(1, 0))
    with pytest.raises(KeyError, match=r"'state' is missing.*prop"):
        agent.act({"prop": torch.zeros(P)})
    with pytest.raises(TypeError, match="function"):
        agent.add_bc_policy(lambda obs: obs)  # type: ignore[arg-type]


class Meter:
    def __init__(self) -> None:
        self.values: dict[str, list[float]] = {}

    def append(self, key: str, value: torch.Tensor) -> None:
        self.values.setdefault(key, []).append(float(value))


def test_nothing_is_computed_for_a_report_that_nobody_takes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[int] = []
    metrics = q_agent.act_metrics
    monkeypatch.setattr(q_agent, "act_metrics", lambda *a, **k: calls.append(1) or metrics(*a, **k))
    agent = ibrl_agent()
    agent.act(observe(3, 1))
    assert not calls
    agent.set_stats(Meter())
    agent.act(observe(3, 1))
    assert calls == [1]


def test_the_value_of_an_action_is_the_mean_over_the_critics_members() -> None:
    agent = state_agent(num_k=2).eval()
    obs, action = observe(4, 16), make_batch(4).action
    critic = naive.weights(agent, "critic")
    s, a = obs["state"].double().numpy(), action.double().numpy()
    want = np.mean([naive.min_q(critic, (member,), s, a) for member in ALL], axis=0)
    np.testing.assert_allclose(agent.value(obs, action).numpy(), want, rtol=1e-4, atol=1e-6)
    one = agent.value({k: v[1] for k, v in obs.items()}, action[1])
    assert one.shape == () and float(one) == pytest.approx(want[1], rel=1e-4, abs=1e-6)


def test_acting_reports_what_it_chose() -> None:
    agent = ibrl_agent("ibrl_soft", soft_ibrl_beta=2.0)
    meter = Meter()
    agent.set_stats(meter)
    obs = observe(20, 15)
    rl, bc = candidates_of(agent, obs)
    agent.act(obs, stddev=0.0)
    target, s = naive.weights(agent, "critic_target"), obs["state"].double().numpy()
    q = np.stack([naive.min_q(target, ALL, s, c) for c in (rl, bc)], 1)
    p = np.exp(2 * q) / np.exp(2 * q).sum(1, keepdims=True)
    want = {
        "actor/anorm_rl": np.linalg.norm(rl, axis=1).mean(),
        "actor/anorm_bc": np.linalg.norm(bc, axis=1).mean(),
        "actor/p_max": p.max(1).mean(),
        "actor/qrl-qbc": (q[:, 0] - q[:, 1]).mean(),
    }
    for key, value in want.items():
        assert meter.values[key] == [pytest.approx(value, rel=1e-3, abs=1e-5)], key
    assert meter.values["actor/bc_act"] == meter.values["actor/bc_train"]
    agent.act(obs, eval_mode=True)
    assert len(meter.values["actor/bc_eval"]) == 1
    assert len(meter.values["actor/bc_train"]) == 1
