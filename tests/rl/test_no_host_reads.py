"""An update and an action never read a tensor: on a GPU each read makes the host wait for it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.rl.releases import CASES, small

# operations that read a value, or whose result's size depends on values; multinomial reads
# several inside its kernel
READS = {
    "_local_scalar_dense",
    "item",
    "is_nonzero",
    "equal",
    "allclose",
    "nonzero",
    "nonzero_numpy",
    "masked_select",
    "unique_dim",
    "unique_consecutive",
    "_unique",
    "_unique2",
    "bincount",
    "multinomial",
}


class NoReads(TorchDispatchMode):
    """Raises AssertionError at the first operation that reads a tensor's values."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> torch.Tensor:
        name = func.overloadpacket.__name__
        indices = args[1] if name in ("index", "index_put", "index_put_") else ()
        masks = [i for i in indices if i is not None and i.dtype in (torch.bool, torch.uint8)]
        if name in READS or masks or str(func) == "aten.repeat_interleave.Tensor":
            raise AssertionError(f"{func} reads the values of a tensor")
        return func(*args, **(kwargs or {}))


# the C++ kernels read on the CPU, where a read costs nothing
pytestmark = pytest.mark.usefixtures("without_kernels")


@pytest.mark.parametrize(
    "read",
    [
        lambda x: x.sum().item(),
        lambda x: float(x[0]),
        lambda x: bool((x > 0).any()),
        lambda x: x[x > 0],
        lambda x: x.nonzero(),
        lambda x: x.unique(),
        lambda x: torch.equal(x, x),
        lambda x: torch.masked_select(x, x > 0),
        lambda x: torch.multinomial(x, 1),
        lambda x: x.index_put_((x > 0.5,), x[0]),
        lambda x: torch.repeat_interleave(x.long()),
    ],
)
def test_reads_are_seen(read: Any) -> None:
    x = torch.rand(4)
    with NoReads(), pytest.raises(AssertionError, match="reads the values"):
        read(x)


@pytest.mark.parametrize("case", CASES)
def test_updates_and_actions_read_nothing(case: str) -> None:
    it = small(case)
    with NoReads():
        for update_actor in (False, True):
            metrics = it.agent.update(it.batch, 0.1, update_actor, **it.rft)
        if it.rft:
            metrics |= it.agent.pretrain_actor_with_bc(it.batch)
        it.agent.eval()
        actions = [it.agent.act(it.obs, eval_mode=e, stddev=0.1, cpu=False) for e in (False, True)]
    assert all(isinstance(v, torch.Tensor) and v.isfinite() for v in metrics.values())
    assert all(a.shape == (it.agent.action_dim,) and a.isfinite().all() for a in actions)
