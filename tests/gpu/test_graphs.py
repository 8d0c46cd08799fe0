"""Compiled agents equal plain ones on a device, and nothing there waits for the device."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from common_utils.ahead import Ahead
from common_utils.ibrl_utils import eval_mode
from common_utils.specs import Batch
from networks import graphs
from networks.captured import WARM_UP
from tests.replay.test_buffer import FakeTask, drive, make
from tests.rl.releases import CASES, Small, small
from tests.rl.test_compiled_agents import state

WAYS = [("small_state", how) for how in graphs.COMPILE[1:]] + [("robomimic_rl/can_ibrl", "default")]
# tests/rl/test_compiled_agents.py has more on the CPU
COMPILED = [
    ("small_state", "default", "cpu"),
    *(pytest.param(case, how, "cuda", marks=pytest.mark.gpu) for case, how in WAYS),
]


@pytest.fixture(autouse=True)
def _quickly_on_the_cpu(device: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """There graphs are made, but no code for them, which would take minutes."""
    if device == "cpu":
        monkeypatch.setattr(graphs, "BACKEND", "aot_eager")
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("case, how, device", COMPILED, indirect=["device"])
def test_compiled_updates_and_actions(case: str, how: str, device: str) -> None:
    off = {"actor.dropout": 0.0, "state_actor.dropout": 0.0}  # whose masks differ
    plain, graph = (small(case, device, compile=c, **off) for c in ("off", how))
    for it in (plain, graph):
        for opt in it.agent.optimizers().values():
            opt.param_groups[0]["eps"] = 0.01  # no full steps for rounding errors
    # more than the warm-up of a captured graph
    for update_actor in (False, *[True] * (WARM_UP + 2)):
        metrics = []
        for it in (plain, graph):
            torch.manual_seed(1)
            metrics.append(it.agent.update(plain.batch, 0.1, update_actor))
        torch.testing.assert_close(metrics[1], metrics[0], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(state(graph), state(plain), rtol=1e-3, atol=1e-4)
    with eval_mode(plain.agent, graph.agent):
        for mode in [True, False] * (WARM_UP + 2):
            want, got = (
                it.agent.act(plain.obs, eval_mode=mode, stddev=0.1) for it in (plain, graph)
            )
            torch.testing.assert_close(got, want, rtol=0, atol=1e-3)


@contextmanager
def no_waiting(device: str) -> Iterator[None]:
    """An error if the host waits for the device."""
    if device == "cuda":
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        if device == "cuda":
            torch.cuda.set_sync_debug_mode("default")


def updates(it: Small) -> None:
    for update_actor in (False, True):
        it.agent.update(it.batch, 0.1, update_actor, **it.rft)


@pytest.mark.parametrize("case", CASES if torch.cuda.is_available() else CASES[:1])
def test_an_update_does_not_wait(case: str, device: str) -> None:
    it = small(case, device)
    updates(it)  # makes what is made once
    with no_waiting(device):
        updates(it)
        it.agent.eval()
        it.agent.act({k: v.to(device) for k, v in it.obs.items()}, stddev=0.1, cpu=False)


@pytest.mark.parametrize("resident", [False, True])
def test_drawing_a_batch_does_not_wait(resident: bool, device: str) -> None:
    where = torch.device(device)
    buffer = make(resident=where if resident else None)
    drive(buffer, FakeTask(0), 80, draw=False)
    ahead = Ahead[Batch](buffer, buffer.copies_to(where))
    for _ in range(6):  # page-locked memory is made at the first
        ahead.take(buffer.sample, 16, where)
        ahead.prepare(buffer.sample, 16, where)
    with no_waiting(device):
        ahead.take(buffer.sample, 16, where)
        ahead.prepare(buffer.sample, 16, where)
