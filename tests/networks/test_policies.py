"""BC policies as ``common_utils.specs.Policy``: batching, modes, losses, configurations."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from bc.explicit.base import ExplicitPolicy
from bc.explicit.bc_policy import BcPolicy, BcPolicyConfig, StateBcPolicy, StateBcPolicyConfig
from bc.explicit.multiview_encoder import MultiViewEncoder, MultiViewEncoderConfig
from bc.explicit.mw_bc_policy import BcPolicy as MwBcPolicy
from bc.explicit.mw_bc_policy import BcPolicyConfig as MwBcPolicyConfig
from common_utils import run_config
from common_utils.run_config import ConfigError
from common_utils.specs import ArraySpec, EnvSpec, Policy, SpecError
from networks.encoder import ResNetEncoderConfig

SHAPE, CAMERAS = (3, 96, 96), ("front", "wrist")
SMALL = ResNetEncoderConfig(shallow=1)


def pixel(**kwargs: float) -> BcPolicy:
    encoder = MultiViewEncoderConfig(resnet=SMALL, feat_dim=8)
    cfg = BcPolicyConfig(encoder=encoder, use_prop=1, hidden_dim=16, **kwargs)
    return BcPolicy(SHAPE, (5,), 4, CAMERAS, cfg)


def metaworld(use_prop: int = 1) -> MwBcPolicy:
    cfg = MwBcPolicyConfig(resnet=SMALL, hidden_dim=16, feature_dim=8, use_prop=use_prop)
    return MwBcPolicy(SHAPE, (5,), 4, cfg, camera="front")


def state(norm_state: int = 0) -> StateBcPolicy:
    return StateBcPolicy((6,), 4, StateBcPolicyConfig(hidden_dim=16, norm_state=norm_state))


POLICIES: dict[str, Callable[[], ExplicitPolicy]] = {
    "pixel": pixel,
    "metaworld": metaworld,
    "metaworld_no_prop": lambda: metaworld(0),
    "state": state,
    "state_norm": lambda: state(1),
}


@pytest.fixture(params=POLICIES)
def policy(request: pytest.FixtureRequest) -> ExplicitPolicy:
    torch.manual_seed(0)
    return POLICIES[request.param]()


def observe(n: int) -> dict[str, torch.Tensor]:
    """More than any policy needs, so that unread keys are seen to be harmless."""
    obs = {c: torch.randint(0, 256, (n, *SHAPE), dtype=torch.uint8) for c in CAMERAS}
    return obs | {"prop": torch.randn(n, 5), "state": torch.randn(n, 6), "other": torch.ones(n)}


def test_act_batched_unbatched_and_without_side_effects(policy: ExplicitPolicy) -> None:
    assert isinstance(policy, Policy)
    policy.eval()
    obs = observe(3)
    before = {k: v.clone() for k, v in obs.items()}
    batched = policy.act(obs)
    assert batched.shape == (3, 4)
    assert batched.dtype == torch.float32
    assert batched.abs().max() <= 1
    assert not batched.requires_grad
    single = {k: v[1] for k, v in obs.items()}
    shapes = {k: v.shape for k, v in single.items()}
    torch.testing.assert_close(policy.act(single), batched[1], rtol=1e-4, atol=1e-5)
    assert {k: v.shape for k, v in single.items()} == shapes
    assert obs.keys() == before.keys()
    assert all(torch.equal(obs[k], before[k]) for k in obs)


def test_act_is_refused_while_training(policy: ExplicitPolicy) -> None:
    with pytest.raises(RuntimeError, match="eval mode"):
        policy.act(observe(1))


def test_propose_repeats_the_action(policy: ExplicitPolicy) -> None:
    policy.eval()
    obs = observe(2)
    candidates = policy.propose(obs, 3)
    assert candidates.shape == (2, 3, 4)
    for n in range(3):
        assert torch.equal(candidates[:, n], policy.act(obs))
    with pytest.raises(ValueError, match="at least 1"):
        policy.propose(obs, 0)
    with pytest.raises(ValueError, match="batched"):
        policy.propose({k: v[0] for k, v in obs.items()}, 1)


def test_loss_value_forms_and_gradients(policy: ExplicitPolicy) -> None:
    policy.eval()
    if hasattr(policy, "aug"):
        policy.aug = nn.Identity()
    obs, action = observe(3), torch.rand(3, 4)
    loss = policy.loss(SimpleNamespace(obs=obs, action=action))
    expected = (policy.act(obs) - action).square().sum(1).mean()
    torch.testing.assert_close(loss.detach(), expected, rtol=1e-4, atol=1e-5)
    as_dict = policy.loss(SimpleNamespace(obs=obs, action={"action": action}))
    assert torch.equal(loss, as_dict)
    loss.backward()
    assert all(p.grad is not None for p in policy.parameters())
    with pytest.raises(ValueError, match="actions must be"):
        policy.loss(SimpleNamespace(obs=obs, action=action[:, :2]))


def test_missing_and_misshapen_observations_are_named(policy: ExplicitPolicy) -> None:
    policy.eval()
    for key, spec in policy.input_specs().items():
        obs = observe(2)
        del obs[key]
        with pytest.raises(KeyError, match=key):
            policy.act(obs)
        obs[key] = torch.zeros(2, *(s + 1 for s in spec.shape))
        with pytest.raises(ValueError, match=key):
            policy.act(obs)


def test_input_specs_are_checked_against_an_environment(policy: ExplicitPolicy) -> None:
    delivers = {c: ArraySpec(SHAPE, "uint8") for c in CAMERAS}
    delivers |= {"prop": ArraySpec((5,)), "state": ArraySpec((6,))}
    env = EnvSpec("suite", "task", delivers, 4, 100, CAMERAS)
    env.check_provides(policy.input_specs(), policy.action_dim, "policy")
    bare = EnvSpec("suite", "task", {}, 4, 100)
    with pytest.raises(SpecError, match="needs observation"):
        bare.check_provides(policy.input_specs(), policy.action_dim, "policy")


def test_batched_and_unbatched_observations_do_not_mix() -> None:
    policy = pixel().eval()
    obs = observe(2)
    obs["prop"] = obs["prop"][0]
    with pytest.raises(ValueError, match="batch axis"):
        policy.act(obs)


def test_training_loss_shifts_each_camera_on_its_own() -> None:
    policy = pixel(prop_noise=0.1)
    obs = observe(2)
    obs["wrist"] = obs["front"].clone()
    out = policy.augment({k: obs[k] for k in ("front", "wrist", "prop")})
    assert out["front"].dtype == torch.uint8
    assert not torch.equal(out["front"], out["wrist"])
    noise = (out["prop"] - obs["prop"]).abs()
    assert 0 < noise.max() <= 0.1 + 1e-6
    assert torch.equal(obs["wrist"], obs["front"])


def test_state_normaliser_is_in_the_checkpoint_only_when_on() -> None:
    assert all(k.startswith("net.") for k in state().state_dict())
    policy = state(1).eval()
    assert policy.normalizer is not None
    data = torch.randn(100, 6) * 3 + 2
    policy.normalizer.fit(data)
    other = state(1).eval()
    other.load_state_dict(policy.state_dict(), strict=True)
    torch.testing.assert_close(other.act({"state": data}), policy.act({"state": data}))
    plain = state().eval()
    plain.net.load_state_dict(policy.net.state_dict())
    scaled = {"state": policy.normalizer(data)}
    torch.testing.assert_close(plain.act(scaled), policy.act({"state": data}))


def test_refused_configurations() -> None:
    with pytest.raises(ConfigError, match="fuse_method"):
        run_config.from_dict(MultiViewEncoderConfig, {"fuse_method": "sum"})
    with pytest.raises(ValueError, match="camera"):
        MultiViewEncoder(SHAPE, 1, (5,), (), 0)
    with pytest.raises(ConfigError, match="net_type"):
        run_config.from_dict(MwBcPolicyConfig, {"net_type": "vit"})
