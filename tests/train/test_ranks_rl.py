"""RL updates on two ranks are those of a single process, up to rounding."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import train_rl
from common_utils import ranks, run_config
from rl.q_agent import QAgent
from tests.pair import pair
from tests.rl.agents import LinearPolicy, make_batch, pixel_agent, state_agent, with_cache
from tests.runs import metrics, weights
from tests.train import small
from workspace.shared_updates import SharedUpdates

NUM, ROWS = 100, 3


def rounding_stays_rounding(agent: QAgent) -> None:
    """A larger epsilon: Adam makes whole steps of gradients that are zero but for rounding."""
    for optimizer in agent.optimizers().values():
        for group in optimizer.param_groups:
            group["eps"] = 1e-3


def agent_of(kind: str, seed: int) -> QAgent:
    """Dropout in the actor, a soft choice between its action and that of a BC policy."""
    make = pixel_agent if kind == "pixels" else state_agent
    method = {"act_method": "ibrl_soft"} if kind != "rft" else {"bc_loss_dynamic": 1}
    agent = make(dropout=0.2, seed=seed, **method)
    if kind != "rft":
        agent.add_bc_policy(LinearPolicy(1, "prop" if kind == "pixels" else "state"))
    rounding_stays_rounding(agent)
    return agent.train()


def updated(kind: str, num: int) -> tuple[dict[str, np.ndarray], list[dict[str, float]]]:
    """Weights, targets and moments after ``num`` updates on this process's part, and metrics."""
    with ranks.joined():
        agent = agent_of(kind, ranks.rank())  # the second rank gets the first one's weights
        updates, seen = SharedUpdates(agent), []
        if ranks.is_first():
            seen = list(_updates(updates, kind, num))
            updates.end()
        else:
            updates.follow()
    state = agent.training_state()
    moments = [s for o in state["optimizers"].values() for s in o["state"].values()]
    numbers = state["model"] | {f"{i}.{k}": v for i, s in enumerate(moments) for k, v in s.items()}
    return {k: v.numpy() for k, v in numbers.items()}, seen


def _updates(updates: SharedUpdates, kind: str, num: int) -> Any:
    agent, ref = updates.agent, None
    if kind == "rft":
        updates.begin()
        for i in range(5):
            metrics = updates.pretrain(make_batch(ROWS, seed=1000 + i))
            yield {k: float(v) for k, v in metrics.items()}
        agent.finish_pretraining()
        ref = agent.reference_copy()
    updates.begin(ref)
    for i in range(num):
        batch, demos = make_batch(ROWS, seed=i, pixels=kind == "pixels"), None
        if kind == "rft":
            demos = make_batch(ROWS, seed=2000 + i) if i % 2 else None
        else:
            batch = with_cache(agent, batch)
        metrics = updates.update(batch, 0.1, bool(i % 2), demos, ref)
        yield {k: float(v) for k, v in metrics.items()}


@pytest.mark.parametrize(("kind", "num"), [("pixels", NUM), ("states", 40), ("rft", 20)])
def test_updates_of_two_ranks(kind: str, num: int) -> None:
    want, logged = updated(kind, num)
    (first, seen), (second, _) = pair(updated, kind, num)
    assert [k for k in first if not np.array_equal(first[k], second[k])] == []  # bit for bit
    for key in want:
        np.testing.assert_allclose(first[key], want[key], rtol=1e-4, atol=1e-5, err_msg=key)
    assert len(seen) == len(logged) >= num
    for a, b in zip(seen, logged, strict=True):
        assert a == pytest.approx(b, rel=1e-4, abs=1e-5)


def train(args: list[str]) -> None:
    with ranks.joined():
        if ranks.is_first():
            train_rl.run(run_config.parse_args(train_rl.MainConfig, args))
        else:
            train_rl.follow(train_rl.MainConfig)


def test_a_run_on_two_ranks_goes_on_with_one(tmp_path: Path, capfd: Any) -> None:
    """The same episodes, records and weights as those of one process."""
    runs = {name: tmp_path / name for name in ("alone", "mixed")}
    options = {"suite": "particle", "task_name": "PARTICLE_2d", "episode_length": 17}

    def run(name: str, steps: int, **more: Any) -> list[str]:
        cfg = small.config(runs[name], steps, log_per_step=24, **options, **more)
        tree = run_config.flatten(run_config.to_dict(cfg))
        return [f"--{k}={v}" for k, v in tree.items() if v not in ("", [], None)]

    train(run("alone", 48))
    assert pair(train, run("mixed", 24)) == [None, None]
    assert capfd.readouterr().out.count("step 24,") == 2  # of one, and of two
    train(run("mixed", 48, resume=1))
    for a, b in zip(metrics(runs["mixed"]), metrics(runs["alone"]), strict=True):
        assert a == pytest.approx(b, rel=1e-3, abs=1e-4)
    alone = weights(runs["alone"])
    for key, value in weights(runs["mixed"]).items():
        torch.testing.assert_close(value, alone[key], rtol=1e-3, atol=1e-4, msg=key)
