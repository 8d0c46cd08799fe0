"""An agent over chunks of actions: its targets, losses, choices, and how chunks are played."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from common_utils.specs import BC_ACTION, CLOCK, Batch, Obs
from rl import rft
from rl.agent import RunFacts
from rl.q_agent import QAgent
from rl.q_agent_config import QAgentConfig
from tests.rl import naive
from tests.rl.agents import A, LinearPolicy, observe, pixel_agent, pixel_config, state_agent

H, W = 3, 9
ALL = tuple(range(5))  # members of the critic


class ChunkPolicy(LinearPolicy):
    """Proposes what ``LinearPolicy`` does, weaker from step to step of the chunk."""

    def propose(
        self, obs: Obs, n: int, *, horizon: int | None = None, generator: Any = None
    ) -> torch.Tensor:
        each = super().propose(obs, n)
        return torch.cat([each * 0.8**step for step in range(horizon or 1)], dim=-1)


def agent(method: str = "ibrl", **options: Any) -> QAgent:
    """All members of the critic value a candidate, so that targets have no random subset."""
    made = state_agent(num_k=5, horizon=H, act_method=method, **options)
    if method != "rl":
        made.add_bc_policy(ChunkPolicy(1))
    return made


def windows(rows: int = 8) -> Batch:
    gen = torch.Generator().manual_seed(3)
    valid = torch.ones(rows, H)
    valid[0, 1:] = 0  # the first ends after one step
    return Batch(
        observe(rows, 0),
        observe(rows, 1),
        torch.rand(rows, H, A, generator=gen) * 2 - 1,
        torch.rand(rows, generator=gen),
        0.9 * (torch.rand(rows, generator=gen) > 0.3).float(),
        rewards=torch.zeros(rows, H),
        valid=valid,
    )


def numbers(x: torch.Tensor) -> np.ndarray:
    return x.detach().double().numpy()


@pytest.mark.parametrize("method", ["rl", "ibrl"])
@pytest.mark.parametrize("tail", ["absorb", "drop"])
def test_the_critics_step_is_that_of_a_slow_oracle(method: str, tail: str) -> None:
    it, batch = agent(method, tail=tail), windows()
    if tail == "drop":
        assert batch.valid is not None
        batch = replace(batch, weight=batch.valid[:, -1])
    critic, target = naive.weights(it, "critic"), naive.weights(it, "critic_target")
    mean = naive.actor_mean(naive.weights(it, "actor_target"), numbers(batch.next_obs["state"]))
    assert mean.shape == (8, W)
    noise = torch.randn(8, W, generator=torch.Generator().manual_seed(0))  # the agent's seed
    candidates = [naive.sample(mean, numbers(noise), 0.1, 0.3)]
    if method == "ibrl":
        candidates.append(numbers(it.propose(batch.next_obs)[:, 0]))
    args = (target, numbers(batch.next_obs["state"]), candidates)
    got = naive.td_targets(*args, numbers(batch.reward), numbers(batch.bootstrap), 5, 5)[ALL, ALL]
    chunk = numbers(batch.action).reshape(8, W)
    q = [naive.member_q(critic, m, numbers(batch.obs["state"]), chunk) for m in ALL]
    errors = sum((values - got) ** 2 for values in q)
    if tail == "drop":
        errors = errors * np.array([0, *[1] * 7])

    metrics = it.update(batch, 0.1, update_actor=True)
    assert float(metrics["train/critic_qt"]) == pytest.approx(got.mean(), rel=1e-5)
    assert float(metrics["train/critic_loss"]) == pytest.approx(np.mean(errors), rel=1e-5)
    assert ("actor/bootstrap_bc" in metrics) == (method == "ibrl")


def test_a_chunk_is_played_to_its_end_and_no_further() -> None:
    """Two episodes at once, one a step behind; a third begins where the first has ended."""
    it = agent().eval()
    times = [[(0, 0), (1, 0)], [(0, 1), (1, 1)], [(0, 2), (2, 0)], [(0, 3), (2, 1)]]
    begun: dict[int, torch.Tensor] = {}
    for i, now in enumerate(times):
        obs = observe(2, seed=i)
        played = it.act({**obs, CLOCK: torch.tensor(now)}, eval_mode=True)
        chunks = it.act_chunk(obs)
        assert played.shape == (2, A) and chunks.shape == (2, H, A)
        for row, (episode, step) in enumerate(now):
            if step % H == 0:
                begun[episode] = chunks[row]
            torch.testing.assert_close(played[row], begun[episode][step % H])


def test_without_a_clock_the_first_action_of_a_new_chunk_is_played() -> None:
    it, obs = agent().eval(), observe(2, 0)
    action = it.act(obs, eval_mode=True)
    torch.testing.assert_close(action, it.act_chunk(obs)[:, 0])
    torch.testing.assert_close(it.act({"state": obs["state"][0]}, eval_mode=True), action[0])


def test_what_is_being_played_is_remembered() -> None:
    it, other = agent().eval(), agent(seed=1).eval()
    obs = observe(1, 0)
    first = it.act({**obs, CLOCK: torch.tensor([[7, 0]])}, eval_mode=True)
    assert torch.equal(it.value({**obs, CLOCK: torch.tensor([[7, 0]])}, first),  # type: ignore[arg-type]
                       it.critic(obs, it.act_chunk(obs).flatten(1)).mean(-1))  # fmt: skip
    assert it.value(obs, first) is None, "no chunk is known to begin here"
    other.load_bc_memory(it.bc_memory())
    later = {**observe(1, 5), CLOCK: torch.tensor([[7, 1]])}
    assert torch.equal(it.act(later, eval_mode=True), other.act(later, eval_mode=True))


def test_imitating_plays_the_cached_proposals() -> None:
    it = agent()
    cached = it.propose(observe(1, 0))
    assert cached.shape == (1, 1, W)
    for step in range(H):
        newer = cached if step == 0 else torch.zeros_like(cached)
        obs = {BC_ACTION: newer, CLOCK: torch.tensor([[0, step]])}
        assert torch.equal(it.imitate(obs)[0], cached[0, 0, step * A : (step + 1) * A])


def test_a_recording_shows_the_first_actions_of_the_candidates() -> None:
    it = agent().eval()
    obs = {**{k: v[0] for k, v in observe(1, 0).items()}, CLOCK: torch.tensor([0, 0])}
    decision = it.explain(obs)
    assert decision.candidates is not None and decision.candidates.shape == (2, A)
    assert torch.equal(decision.candidates[decision.chosen], decision.action)
    again = it.explain({**obs, CLOCK: torch.tensor([0, 1])})
    assert again.candidates is None, "inside a chunk nothing is chosen"


def test_steps_behind_the_end_are_not_imitated() -> None:
    it, batch = agent("rl"), windows()
    loss = rft.bc_loss(it, batch)
    pred = naive.actor_mean(naive.weights(it, "actor"), numbers(batch.obs["state"]))
    assert batch.valid is not None
    errors = (pred.reshape(8, H, A) - numbers(batch.action)) ** 2 * numbers(batch.valid)[..., None]
    assert float(loss.detach()) == pytest.approx(errors.sum((1, 2)).mean(), rel=1e-5)


@pytest.mark.parametrize("compile", ["off", "default"])
def test_pixels_and_graphs_have_chunks_as_well(
    compile: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("networks.graphs.BACKEND", "eager")
    it = pixel_agent(horizon=H, compile=compile)
    batch = windows(2)
    batch = replace(batch, obs=observe(2, 0, pixels=True), next_obs=observe(2, 1, pixels=True))
    assert float(it.update(batch, 0.1, True)["train/critic_loss"]) > 0
    assert it.eval().act_chunk(batch.obs).shape == (2, H, A)


def test_what_does_not_fit_is_refused() -> None:
    run = RunFacts(True, False, False, False, nstep=3)
    with pytest.raises(ValueError, match="horizon: 2 sums the rewards .* expected nstep 1, got 3"):
        QAgentConfig(horizon=2).check(run)
    QAgentConfig(horizon=2).check(run._replace(nstep=1))
    with pytest.raises(ValueError, match="max_action_norm"):
        pixel_agent(horizon=7, actor=replace(pixel_config().actor, max_action_norm=1.0))
    assert agent().graphs() == {"action": "an agent over chunks of actions has no graph to export"}
