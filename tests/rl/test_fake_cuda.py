"""Every released configuration on a pretended GPU: shapes and devices agree.

Fake tensors have a shape, a dtype and a device, but no memory, so no GPU is needed. An operation
on tensors of two devices fails, and so does reading a value. Without a GPU three parts cannot run
and are replaced: CUDA generators (CPU ones stand for them), autograd's threads for a device (its
nodes are called one by one), and moving a module (everything is made on the GPU).
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
def gpu(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A pretended GPU, on which new tensors without a device of their own are made."""
    if hasattr(request, "param"):  # without
        yield
        return
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
    monkeypatch.setattr(torch.Tensor, "backward", backward)
    return it


def backward(loss: torch.Tensor) -> None:
    """``loss.backward()`` without autograd's threads, which a device must exist for."""
    assert loss.shape == () and loss.requires_grad
    root: Any = loss.grad_fn
    grads: dict[Any, dict[int, torch.Tensor]] = {root: {0: torch.ones_like(loss)}}
    for node in _from_the_loss(root):
        mine = grads.pop(node, {})
        if node.name() == "torch::autograd::AccumulateGrad":
            leaf, grad = node.variable, mine[0]
            assert (grad.shape, grad.dtype, grad.device) == (leaf.shape, leaf.dtype, leaf.device)
            leaf.grad = grad.detach() if leaf.grad is None else leaf.grad + grad.detach()
            continue
        found = node(*[mine.get(i) for i in range(max(mine, default=0) + 1)])
        found = found if isinstance(found, tuple) else (found,)
        for grad, (parent, index) in zip(found, node.next_functions, strict=True):
            if parent is not None and grad is not None:
                grad = grad.sum_to_size(parent._input_metadata[index].shape)  # it was broadcast
                slots = grads.setdefault(parent, {})
                slots[index] = slots[index] + grad if index in slots else grad


def _from_the_loss(root: Any) -> list[Any]:
    """Nodes of the graph, each before those that it passes gradients to."""
    order: list[Any] = []
    seen: set[Any] = set()
    stack = [(root, False)]
    while stack:
        node, finished = stack.pop()
        if finished:
            order.append(node)
        elif node not in seen:
            seen.add(node)
            stack.append((node, True))
            stack += [(parent, False) for parent, _ in node.next_functions if parent is not None]
    return order[::-1]


@pytest.mark.parametrize("gpu", [None], indirect=True)
@pytest.mark.parametrize("case", ["robomimic_rl/can_rft", "small_state", "metaworld/ibrl_basic"])
@pytest.mark.usefixtures("without_kernels")
def test_nodes_called_one_by_one_give_the_gradients(case: str, gpu: None) -> None:
    it = small(case, **{"state_actor.dropout": 0.0, "actor.dropout": 0.0})
    grads = []
    for run in (torch.Tensor.backward, backward):
        it.agent.zero_grad()
        feats = it.agent.features(it.batch.obs, augment=False)
        q = it.agent.critic(feats, it.agent.actor(feats, 0.1).mean).square().mean()
        run(q)
        grads.append([p.grad for p in it.agent.parameters() if p.grad is not None])
    assert len(grads[0]) == len(grads[1]) > 10
    torch.testing.assert_close(grads[1], grads[0], rtol=1e-5, atol=1e-7)


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
    opts = it.agent.optimizers().values()
    assert all(p.grad is not None for o in opts for p in o.param_groups[0]["params"])
    moments = [t for o in opts for s in o.state.values() for t in s.values()]
    assert {t.device for t in moments} == {CUDA}
    assert all(o.param_groups[0]["capturable"] for o in opts)
    it.agent.eval()
    batched = {k: v.expand(ROWS, *v.shape) for k, v in it.obs.items()}
    for eval_mode in (False, True):
        one = it.agent.act(it.obs, eval_mode=eval_mode, stddev=0.1, cpu=False)
        many = it.agent.act(batched, eval_mode=eval_mode, stddev=0.1, cpu=False)
        assert (one.shape, one.device) == ((it.agent.action_dim,), CUDA)
        assert (many.shape, many.device) == ((ROWS, it.agent.action_dim), CUDA)
