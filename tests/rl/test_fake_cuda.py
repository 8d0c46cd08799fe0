"""Every released configuration on a pretended GPU: shapes and devices agree.

Fake tensors have a shape, a dtype and a device, but no memory, so no GPU is needed. An operation
on tensors of two devices fails, and so does reading a value. Without a GPU three parts cannot run
and are replaced: CUDA generators (CPU ones stand for them), backward passes (every parameter gets
an empty gradient), and moving a module (everything is made on the GPU).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    FakeTensorMode,
    unset_fake_temporarily,
)
from torch.utils._python_dispatch import TorchDispatchMode

from rl import agent as agent_module
from rl.critic import MultiFcQ
from tests.rl.releases import CASES, ROWS, Small, small

CUDA = torch.device("cuda", 0)


class FakeGpu(TorchDispatchMode):
    """Refuses CPU tensors as indices of tensors on the GPU, which torch copies while it waits.

    Fake tensors know no exponential numbers of a generator; those of the global one are taken.
    """

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> torch.Tensor:
        kwargs = dict(kwargs or {})
        name = func.overloadpacket.__name__
        if name == "exponential_":
            kwargs.pop("generator", None)
        if name in ("index", "index_put", "index_put_", "index_select", "gather"):
            devices = {t.device.type for t in _flat(args) if isinstance(t, torch.Tensor)}
            if len(devices) > 1:
                raise AssertionError(f"{func} of tensors on {sorted(devices)}")
        return func(*args, **kwargs)


def _flat(args: Any) -> list[Any]:
    return [t for a in args for t in (a if isinstance(a, (list, tuple)) else [a])]


@pytest.fixture(autouse=True)
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A pretended GPU, on which new tensors without a device of their own are made."""
    draw = MultiFcQ.draw_members

    def moved(module: nn.Module, device: torch.device) -> nn.Module:
        found = {t.device for t in [*module.parameters(), *module.buffers()]}
        assert found <= {CUDA} and torch.device(device).type == "cuda"
        return module

    def members(critic: MultiFcQ, rng: Any) -> list[int]:
        with unset_fake_temporarily():  # drawn by the host, so that nothing is read
            return draw(critic, rng)

    # copies of networks belong to the same mode
    monkeypatch.setattr(FakeTensorMode, "__deepcopy__", lambda mode, memo: mode, raising=False)
    monkeypatch.setattr(agent_module, "resolve_device", torch.device)
    monkeypatch.setattr(nn.Module, "to", moved)
    monkeypatch.setattr(MultiFcQ, "draw_members", members)
    with FakeTensorMode(), FakeGpu():
        yield


def on_gpu(case: str, monkeypatch: pytest.MonkeyPatch, **options: Any) -> Small:
    generator = torch.Generator
    with monkeypatch.context() as patch, torch.device(CUDA):
        patch.setattr(torch, "Generator", lambda device="cpu": generator())
        patch.setattr(nn.init, "trunc_normal_", lambda t, **k: t)  # it reads, once, at the start
        it = small(case, str(CUDA), **options)
    parameters = [p for o in it.agent.optimizers().values() for p in o.param_groups[0]["params"]]

    def backward(loss: torch.Tensor) -> None:
        assert loss.shape == () and loss.device == CUDA and loss.requires_grad
        for p in parameters:
            p.grad = torch.empty_like(p)

    monkeypatch.setattr(torch.Tensor, "backward", backward)
    return it


def test_mixed_devices_and_reads_are_seen() -> None:
    x = torch.zeros(4, device=CUDA)
    with pytest.raises(RuntimeError, match="cuda:0"):
        x + torch.zeros(4)
    with pytest.raises(AssertionError, match="cpu"):
        x[torch.tensor([0, 1])]
    with pytest.raises(DataDependentOutputException):
        float(x[0])


@pytest.mark.parametrize("case", CASES)
def test_updates_and_actions_stay_on_the_gpu(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    it = on_gpu(case, monkeypatch)
    metrics = {}
    for update_actor in (False, True):
        metrics |= it.agent.update(it.batch, 0.1, update_actor, **it.rft)
    if it.rft:
        metrics |= it.agent.pretrain_actor_with_bc(it.batch)
    assert {(v.shape, v.device) for v in metrics.values()} == {(torch.Size(), CUDA)}
    states = [s for o in it.agent.optimizers().values() for s in o.state.values()]
    assert {s["step"].device for s in states} == {CUDA}
    it.agent.eval()
    batched = {k: v.expand(ROWS, *v.shape) for k, v in it.obs.items()}
    for eval_mode in (False, True):
        one = it.agent.act(it.obs, eval_mode=eval_mode, stddev=0.1, cpu=False)
        many = it.agent.act(batched, eval_mode=eval_mode, stddev=0.1, cpu=False)
        assert (one.shape, one.device) == ((it.agent.action_dim,), CUDA)
        assert (many.shape, many.device) == ((ROWS, it.agent.action_dim), CUDA)
