"""Updates and actions as graphs of ``torch.compile`` equal those without."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch._dynamo import config as tracing

from common_utils.errors import UserError
from networks import graphs
from tests.rl.releases import Small, small

CPU = torch.device("cpu")
SOFT = {"act_method": "ibrl_soft", "bootstrap_method": "ibrl_soft"}
# states, ViT with proprioception, DrQ; IBRL, soft, RLPD, RFT
UPDATES: list[tuple[str, dict[str, Any]]] = [
    ("small_state", {}),
    ("robomimic_rl/can_state_rft", {"bc_loss_dynamic": 1}),
    ("robomimic_rl/can_ibrl", SOFT),
    ("metaworld/rft", {}),
]
ACTS: list[tuple[str, dict[str, Any]]] = [
    ("small_state", {"ibrl_eps_greedy": 0.5}),
    ("robomimic_rl/can_ibrl", SOFT),
    ("robomimic_rl/can_rft", {}),
]


@pytest.fixture(autouse=True)
def _run_by_torch(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Graphs are traced, forward and backward, but no code is generated: seconds, not minutes."""
    monkeypatch.setattr(graphs, "BACKEND", "aot_eager")
    yield
    torch._dynamo.reset()


def pair(case: str, **options: Any) -> tuple[Small, Small]:
    """The same agent twice, plain and compiled, without dropout, whose masks differ.

    Adam makes a full step of any gradient, even of a rounding error. A larger epsilon prevents it.
    """
    off = {"actor.dropout": 0.0, "state_actor.dropout": 0.0, "state_critic.dropout": 0.0}
    both = small(case, **off, **options), small(case, compile="default", **off, **options)
    for it in both:
        for opt in it.agent.optimizers().values():
            opt.param_groups[0]["eps"] = 0.01
    return both


def state(it: Small) -> dict[str, torch.Tensor]:
    """Weights, targets and moments by name."""
    found = dict(it.agent.state_dict())
    for name, opt in it.agent.optimizers().items():
        for i, p in enumerate(opt.param_groups[0]["params"]):
            found |= {f"{name}.{i}.{key}": value for key, value in opt.state[p].items()}
    return found


@pytest.mark.parametrize("case, options", UPDATES)
def test_updates_equal_those_without(case: str, options: dict[str, Any]) -> None:
    plain, graph = pair(case, **options)
    calls = [(True, True)]  # each is traced, which takes seconds
    if case == "small_state" and not options:
        calls = [(False, True), (True, False), (True, True)]
    for update_actor, cached in calls:
        got, want = (update(it, 0.1 + 0.1 * cached, update_actor, cached) for it in (graph, plain))
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(state(graph), state(plain), rtol=1e-3, atol=1e-5)
    assert_same_generators(graph, plain)


def update(it: Small, stddev: float, update_actor: bool, cached: bool) -> dict[str, torch.Tensor]:
    """One update; the proposals are ``cached`` in the batch, or made by the agent."""
    batch = it.batch if cached else replace(it.batch, next_bc_action=None)
    torch.manual_seed(1)
    return it.agent.update(batch, stddev, update_actor, **it.rft)


def assert_same_generators(got: Small, want: Small) -> None:
    mine, theirs = (it.agent.training_state() for it in (got, want))
    for name in ("rng", "host_rng", "eval_rng", "eval_host_rng"):
        assert torch.equal(mine[name], theirs[name]), name


def test_pretraining_equals_that_without() -> None:
    plain, graph = pair("metaworld/rft")
    for it in (plain, graph):
        torch.manual_seed(1)
        it.agent.pretrain_actor_with_bc(it.batch)
    torch.testing.assert_close(state(graph), {**state(graph), **state(plain)}, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("case, options", ACTS)
def test_actions_equal_those_without(case: str, options: dict[str, Any]) -> None:
    plain, graph = pair(case, **options)
    meters = [Meter(), Meter()]
    for it, meter in zip((plain, graph), meters, strict=True):
        it.agent.eval()
        it.agent.set_stats(meter)
    for eval_mode in (False, True):
        cached = {**plain.obs, "bc_action": torch.zeros(1, 7)}
        for obs in (plain.obs, cached, *([plain.batch.obs] if plain.agent.use_state else [])):
            want = plain.agent.act(obs, eval_mode=eval_mode, stddev=0.3)
            got = graph.agent.act(obs, eval_mode=eval_mode, stddev=0.3)
            torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(meters[1], meters[0], rtol=1e-4, atol=1e-5)
    assert_same_generators(graph, plain)


class Meter(dict[str, list[torch.Tensor]]):
    """What was appended, by name."""

    def append(self, name: str, value: torch.Tensor) -> None:
        self.setdefault(name, []).append(value)


def test_weights_and_moments_are_loaded_into_a_compiled_agent() -> None:
    plain, graph = pair("small_state")
    update(plain, 0.1, True, True)
    graph.agent.load_training_state(copy.deepcopy(plain.agent.training_state()))
    for it in (plain, graph):
        update(it, 0.1, True, True)
    torch.testing.assert_close(state(graph), state(plain), rtol=1e-3, atol=1e-5)
    assert graph.agent.state_dict().keys() == plain.agent.state_dict().keys()


def test_generated_code_acts_as_the_plain_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphs, "BACKEND", "inductor")
    plain, graph = pair("small_state")
    actions = []
    for it in (plain, graph):
        it.agent.eval()
        actions.append(it.agent.act(it.obs, stddev=0.3))
    torch.testing.assert_close(*actions, rtol=1e-4, atol=1e-5)
    assert_same_generators(graph, plain)


def test_a_function_that_is_no_graph_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    read = graphs.compiled(lambda x: x + 1 if x.sum() > 0 else x, "default", "q_agent.compile", CPU)
    with pytest.raises(UserError, match=r"q_agent\.compile: default, expected off here: .*branch"):
        read(torch.zeros(2))
    monkeypatch.delattr(tracing, "trace_autograd_ops", raising=False)
    with pytest.raises(UserError, match=r"q_agent\.compile: max, expected off with torch"):
        graphs.compiled(torch.sin, "max", "q_agent.compile", CPU)


def test_members_as_an_index_need_no_graph() -> None:
    found = small("small_state")
    critic, obs, actions = found.agent.critic, found.batch.obs, found.batch.action.unsqueeze(1)
    for members in ([0, 4], [2], [1, 2, 3]):
        got = critic.q(obs, actions, torch.tensor(members))
        torch.testing.assert_close(got, critic.q(obs, actions, members), rtol=1e-5, atol=1e-6)
