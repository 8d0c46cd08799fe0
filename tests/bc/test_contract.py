"""One contract for every BC policy: act, propose, loss, fit, seed, and generators everywhere."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from bc.base import BasePolicy
from bc.explicit.bc_policy import BcPolicy, BcPolicyConfig, StateBcPolicy, StateBcPolicyConfig
from bc.explicit.mdn_policy import MdnPolicy, MdnPolicyConfig
from bc.explicit.mse_policy import MsePolicy, MsePolicyConfig
from bc.explicit.multiview_encoder import MultiViewEncoderConfig
from bc.explicit.mw_bc_policy import BcPolicy as MwBcPolicy
from bc.explicit.mw_bc_policy import BcPolicyConfig as MwBcPolicyConfig
from bc.generative.flow_policy import FlowPolicy, FlowPolicyConfig
from bc.ibc.autoregressive import AutoregressivePolicy
from bc.ibc.ebm_policy import EbmPolicy, EbmPolicyConfig
from bc.ibc.losses import GradPenaltyConfig
from bc.ibc.samplers import LangevinConfig
from common_utils.specs import Policy
from networks.encoder import ResNetEncoderConfig
from networks.flow import VelocityConfig
from networks.ibc.mlp import MDNConfig, MLPConfig

S, A, SHAPE = 6, 3, (3, 96, 96)
NET = MLPConfig(width=16, depth=2, rate=0.1)
RESNET = ResNetEncoderConfig(shallow=1)


def _pixel() -> BasePolicy:
    cfg = BcPolicyConfig(MultiViewEncoderConfig(resnet=RESNET, feat_dim=8), hidden_dim=16)
    return BcPolicy(SHAPE, (), A, ["front"], cfg)


def _metaworld() -> BasePolicy:
    cfg = MwBcPolicyConfig(resnet=RESNET, hidden_dim=16)
    return MwBcPolicy(SHAPE, (), A, cfg, camera="front")


def _flow() -> BasePolicy:
    cfg = FlowPolicyConfig(net=VelocityConfig(hidden_dim=16, num_layer=2), steps=3)
    return FlowPolicy("state", (S,), 1, A, cfg)


def _ebm() -> BasePolicy:
    chain = LangevinConfig(num_iterations=3)
    cfg = EbmPolicyConfig(
        net=MLPConfig(width=16, rate=0.0),
        num_counter_examples=4,
        num_action_samples=32,
        langevin=chain,
    )
    return EbmPolicy("state", (S,), 1, A, cfg)


def _autoregressive() -> BasePolicy:
    cfg = EbmPolicyConfig(
        net=MLPConfig(width=16, rate=0.0),
        autoregressive=1,
        num_action_samples=32,
        use_dfo=1,
        use_langevin=0,
        fraction_langevin_samples=0,
        grad_penalty=GradPenaltyConfig(add_grad_penalty=0),
    )
    return AutoregressivePolicy("state", (S,), 1, A, cfg)


POLICIES: dict[str, Callable[[], BasePolicy]] = {
    "state": lambda: StateBcPolicy((S,), A, StateBcPolicyConfig(hidden_dim=16)),
    "state_norm": lambda: StateBcPolicy((S,), A, StateBcPolicyConfig(norm_state=1)),
    "pixel": _pixel,
    "metaworld": _metaworld,
    "mse": lambda: MsePolicy("state", (S,), 1, A, MsePolicyConfig(net=NET)),
    "mdn": lambda: MdnPolicy("state", (S,), 1, A, MdnPolicyConfig(net=MDNConfig(width=16))),
    "flow": _flow,
    "ebm": _ebm,
    "autoregressive": _autoregressive,
}
DRAWS = {"mdn", "flow", "ebm", "autoregressive"}
FITS = {"state_norm", "mse", "mdn", "flow", "ebm", "autoregressive"}


@pytest.fixture(params=POLICIES)
def name(request: pytest.FixtureRequest) -> str:
    torch.manual_seed(0)
    return request.param


def observe(policy: BasePolicy, n: int) -> dict[str, torch.Tensor]:
    rng = torch.Generator().manual_seed(4)
    return {
        key: torch.randint(0, 256, (n, *spec.shape), dtype=torch.uint8, generator=rng)
        if spec.dtype == "uint8"
        else torch.randn(n, *spec.shape, generator=rng)
        for key, spec in policy.input_specs().items()
    }


def batch_for(policy: BasePolicy, n: int = 8) -> Any:
    action = torch.rand(n, A, generator=torch.Generator().manual_seed(5)) * 2 - 1
    return SimpleNamespace(obs=observe(policy, n), action=action)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_a_given_generator_decides_and_nothing_else_is_touched(name: str) -> None:
    policy = POLICIES[name]().eval()
    assert isinstance(policy, Policy) and policy.stochastic_eval == (name in DRAWS)
    obs, before = observe(policy, 2), torch.get_rng_state()
    state = policy.rng_state()["generator"]

    def both(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        return (
            policy.act(obs, generator=seeded(seed)),
            policy.propose(obs, 4, generator=seeded(seed)),
        )

    (act, candidates), (again, candidates_again) = both(1), both(1)
    assert act.shape == (2, A) and candidates.shape == (2, 4, A)
    assert float(act.abs().max()) <= 1 and float(candidates.abs().max()) <= 1
    assert torch.equal(act, again) and torch.equal(candidates, candidates_again)
    other_act, other = both(2)
    assert torch.equal(candidates, other) == torch.equal(act, other_act) == (name not in DRAWS)
    assert torch.equal(policy.rng_state()["generator"], state)
    assert torch.equal(torch.get_rng_state(), before)


def test_seed_starts_the_own_generator_and_its_state_resumes(name: str) -> None:
    policy = POLICIES[name]().eval()
    obs = observe(policy, 2)
    policy.seed(3)
    first = policy.propose(obs, 4)
    state, second = policy.rng_state(), policy.propose(obs, 4)
    policy.set_rng_state(state)
    assert torch.equal(policy.propose(obs, 4), second)
    policy.seed(3)
    assert torch.equal(policy.propose(obs, 4), first)
    other = POLICIES[name]().eval()
    other.load_state_dict(policy.state_dict())
    other.set_rng_state(state)
    assert torch.equal(other.propose(obs, 4), second)
    policy.seed(4)
    assert torch.equal(policy.propose(obs, 4), first) == (name not in DRAWS)


def test_fit_reads_the_data_only_where_statistics_are_kept(name: str) -> None:
    policy, read = POLICIES[name](), []

    def batches() -> Iterator[Any]:
        read.append(1)
        yield batch_for(policy)

    before = copy.deepcopy(policy.state_dict())
    policy.fit(batches())
    changed = [k for k, v in policy.state_dict().items() if not torch.equal(v, before[k])]
    assert bool(changed) == bool(read) == (name in FITS)


def test_loss_is_a_scalar_with_graph_and_leaves_metrics(name: str) -> None:
    policy = POLICIES[name]()
    loss = policy.loss(batch_for(policy))
    assert loss.shape == () and loss.requires_grad
    assert all(not v.requires_grad for v in policy.metrics.values())


def test_training_mode_is_refused_when_acting(name: str) -> None:
    policy = POLICIES[name]().train()
    obs = observe(policy, 1)
    for call in (lambda: policy.act(obs), lambda: policy.propose(obs, 1)):
        with pytest.raises(RuntimeError, match="eval mode"):
            call()
