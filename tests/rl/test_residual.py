"""Actors that correct BC proposals: candidates, targets, losses."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from common_utils.specs import BC_ACTION, Batch
from rl.agent import RunFacts
from rl.q_agent import QAgent
from rl.q_agent_config import QAgentConfig
from tests.rl import naive
from tests.rl.agents import (
    A,
    LinearPolicy,
    make_batch,
    observe,
    pixel_agent,
    state_agent,
    unlike_targets,
    with_cache,
)
from tests.rl.test_horizon import ALL, numbers

SCALE = 0.3


def agent(method: str = "rl", samples: int = 1, moved: bool = True, **options: Any) -> QAgent:
    """moved: as after some training, so that the corrections are not zero."""
    made = state_agent(
        num_k=5, act_method=method, residual=SCALE, num_bc_samples=samples, **options
    )
    made.add_bc_policy(LinearPolicy(1, spread=0.2))
    if moved:
        with torch.no_grad():
            for p in made.actor.parameters():
                p.add_(0.3 * torch.randn_like(p))
        unlike_targets(made)
    return made


def corrections(it: QAgent, module: str, state: np.ndarray, base: np.ndarray) -> np.ndarray:
    """Slowly: base [B, A] and the actor's step of at most SCALE."""
    step = naive.actor_mean(naive.weights(it, module), np.concatenate([state, base], axis=1))
    return np.clip(base + SCALE * step, -1, 1)


def test_it_begins_with_the_proposals() -> None:
    it, obs = agent(moved=False).eval(), observe(4, 0)
    assert torch.equal(it.act(obs, eval_mode=True), it.propose(obs)[:, 0])


@pytest.mark.parametrize("method", ["rl", "ibrl"])
@pytest.mark.parametrize("samples", [1, 3])
def test_the_best_of_corrected_and_plain_proposals_is_played(method: str, samples: int) -> None:
    it, obs = agent(method, samples).eval(), observe(8, 0)
    state, proposals = numbers(obs["state"]), numbers(it.propose(obs))
    plain = [proposals[:, i] for i in range(samples)]
    candidates = [corrections(it, "actor", state, base) for base in plain]
    candidates += plain if method == "ibrl" else []
    want = naive.best(naive.weights(it, "critic_target"), ALL, state, candidates)
    np.testing.assert_allclose(numbers(it.act(obs, eval_mode=True)), want, rtol=1e-5, atol=1e-6)
    stored = {**obs, BC_ACTION: it.propose(obs)}
    np.testing.assert_allclose(numbers(it.act(stored, eval_mode=True)), want, rtol=1e-5, atol=1e-6)
    decision = it.explain({k: v[0] for k, v in obs.items()})
    if method == "ibrl":
        assert len(decision.names) == 2 * samples
        assert decision.names[-1] == ("bc" if samples == 1 else f"bc{samples - 1}")


@pytest.mark.parametrize("method", ["rl", "ibrl"])
@pytest.mark.parametrize("samples", [1, 3])
def test_targets_and_losses_are_those_of_a_slow_oracle(method: str, samples: int) -> None:
    it = agent(method, samples)
    batch = with_cache(it, make_batch(8))
    assert batch.bc_action is not None and batch.next_bc_action is not None
    noise = torch.randn(8 * samples, A, generator=torch.Generator().manual_seed(0))
    drawn = numbers(noise).reshape(8, samples, A)
    state, nexts = numbers(batch.obs["state"]), numbers(batch.next_obs["state"])
    candidates = []
    for i in range(samples):
        mean = corrections(it, "actor_target", nexts, numbers(batch.next_bc_action[:, i]))
        candidates.append(naive.sample(mean, drawn[:, i], 0.1, 0.3))
    if method == "ibrl":
        candidates += [numbers(batch.next_bc_action[:, i]) for i in range(samples)]
    target = naive.weights(it, "critic_target")
    got = naive.td_targets(
        target, nexts, candidates, numbers(batch.reward), numbers(batch.bootstrap), 5, 5
    )[ALL, ALL]
    metrics = it.update(batch, 0.1, update_actor=False)
    assert float(metrics["train/critic_qt"]) == pytest.approx(got.mean(), rel=1e-5)

    critic = naive.weights(it, "critic")
    bases = [numbers(batch.bc_action[:, i]) for i in range(samples)]
    means = [corrections(it, "actor", state, base) for base in bases]
    values = [naive.min_q(critic, ALL, state, np.clip(m, -1 + 1e-6, 1 - 1e-6)) for m in means]
    it.cfg.stddev_clip = 0.0
    feats = {**it.features(batch.obs, augment=False), "base": batch.bc_action}
    loss = it.update_actor(feats, 0.1)["train/actor_loss"]
    assert float(loss) == pytest.approx(-np.mean(values), rel=1e-5)


@pytest.mark.parametrize("compile", ["off", "default"])
def test_it_may_learn_to_correct_the_replays_actions(
    compile: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("networks.graphs.BACKEND", "eager")
    it = agent("ibrl", 3, residual_learns="actions", compile=compile)
    batch = with_cache(it, make_batch(8))
    it.cfg.stddev_clip = 0.0
    state = numbers(batch.obs["state"])
    mean = corrections(it, "actor", state, numbers(batch.action))
    metrics = it.update(batch, 0.1, True)
    critic = naive.weights(it, "critic")  # after its step
    value = naive.min_q(critic, ALL, state, np.clip(mean, -1 + 1e-6, 1 - 1e-6))
    assert float(metrics["train/actor_loss"]) == pytest.approx(-value.mean(), rel=1e-4)


def test_proposals_that_are_not_stored_are_made_for_the_update() -> None:
    it, batch = agent("ibrl"), make_batch(8)
    same = agent("ibrl")
    losses = [x.update(b, 0.1, True) for x, b in ((it, batch), (same, with_cache(same, batch)))]
    for key, value in losses[0].items():
        torch.testing.assert_close(value, losses[1][key])


@pytest.mark.parametrize("options", [{}, {"compile": "default"}, {"horizon": 2}])
def test_pixels_graphs_and_chunks(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("networks.graphs.BACKEND", "eager")
    it = pixel_agent(residual=SCALE, act_method="ibrl", num_bc_samples=2, **options)

    class Chunks(LinearPolicy):
        def propose(self, obs: Any, n: int, *, horizon: int = 1, generator: Any = None) -> Any:
            return super().propose(obs, n).repeat(1, 1, horizon)

    it.add_bc_policy(Chunks(1, "prop", spread=0.1))
    batch: Batch = make_batch(4, pixels=True)
    if it.horizon > 1:
        batch = replace(batch, action=torch.zeros(4, 2, A))
    before = {k: v.clone() for k, v in it.actor.state_dict().items()}
    metrics = it.update(batch, 0.1, True)
    assert float(metrics["train/critic_loss"]) > 0
    assert any(not torch.equal(v, before[k]) for k, v in it.actor.state_dict().items())
    assert it.eval().act(batch.obs, stddev=0.1).shape == (4, A)


def test_what_does_not_go_together_is_refused() -> None:
    run = RunFacts(True, True, True, True)
    with pytest.raises(ValueError, match="residual: 0.3, expected 0 with add_bc_loss"):
        QAgentConfig(residual=SCALE).check(run)
    assert QAgentConfig(residual=SCALE).bc_fields == ("residual",)
    assert "sees proposals" in str(agent().graphs()["action"])
