"""Training and acting of BC policies never read a tensor, which would make a GPU's host wait."""

from __future__ import annotations

import pytest

from tests.bc.test_ibc_policies import NAMES, all_policies, data
from tests.rl.conftest import without_kernels as without_kernels
from tests.rl.test_no_host_reads import NoReads


@pytest.mark.usefixtures("without_kernels")
@pytest.mark.parametrize("name", NAMES)
def test_policies_read_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IBC_KERNELS", "off")
    policy = all_policies()[name]
    policy.fit([data()])
    batch, obs = data(), data(3).obs
    with NoReads():
        loss = policy.loss(batch)
        loss.backward()
        policy.eval()
        one = policy.act({"state": obs["state"][0]}, eval_mode=False, cpu=False)
        found = [policy.act(obs, cpu=False), *policy.propose(obs, 4).unbind(1)]
    assert one.isfinite().all() and all(a.shape == (3, 2) and a.isfinite().all() for a in found)
    assert loss.isfinite() and any(p.grad is not None for p in policy.parameters())
