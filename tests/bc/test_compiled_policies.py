"""Losses of BC policies and their gradients as one graph equal those without."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from bc.base import BasePolicy, PolicyInputs
from bc.explicit.bc_policy import BcPolicy, BcPolicyConfig
from bc.gradients import Gradients, loss_and_gradients, trained
from common_utils import run_config
from common_utils.run_config import ConfigError
from networks import graphs
from tests.bc.test_ibc_policies import all_policies, data
from train_bc import MainConfig


@pytest.fixture(autouse=True)
def _run_by_torch(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(graphs, "BACKEND", "aot_eager")
    yield
    torch._dynamo.reset()


def both(policy: BasePolicy, batch: Any) -> tuple[Gradients, Gradients]:
    graph = graphs.compiled(loss_and_gradients, "default", "compile", torch.device("cpu"))
    out = []
    for run in (loss_and_gradients, graph):
        torch.manual_seed(1)
        out.append(run(policy, batch))
    return out[0], out[1]


@pytest.mark.parametrize("name", ["mse", "mdn"])
def test_losses_and_gradients_equal_those_without(name: str) -> None:
    policy: Any = all_policies()[name]
    policy.fit([data()])
    want, got = both(policy, data())
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-6)
    assert len(got.of) == len(trained(policy)) and all(g is not None for g in got.of)
    policy.loss(data()).backward()
    for p, grad in zip(trained(policy), got.of, strict=True):
        torch.testing.assert_close(grad, p.grad, rtol=1e-4, atol=1e-6)


def test_images_are_encoded_in_the_graph() -> None:
    inputs = PolicyInputs((3, 64, 64), 7, 1, ("front",), (9,))
    policy = BcPolicy.build(inputs, BcPolicyConfig())
    image = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    batch = SimpleNamespace(
        obs={"front": image, "prop": torch.randn(2, 9)}, action={"action": torch.rand(2, 7)}
    )
    want, got = both(policy, batch)
    torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-5)


def test_a_loss_that_draws_is_refused() -> None:
    args = ["--policy_type", "ebm", "--dataset.use_state", "1", "--compile", "default"]
    with pytest.raises(ConfigError, match="compile: default, expected off with policy_type ebm"):
        run_config.parse_args(MainConfig, args)
