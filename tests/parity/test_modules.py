"""Networks and policies against the official program: same weights, same outputs."""

from __future__ import annotations

import json
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from bc.explicit.bc_policy import BcPolicy, BcPolicyConfig, StateBcPolicy, StateBcPolicyConfig
from bc.explicit.mw_bc_policy import BcPolicy as MwBcPolicy
from networks.encoder import DrQEncoder, VitEncoder, VitEncoderConfig
from rl.actor import Actor, ActorConfig, FcActor, FcActorConfig
from rl.critic import Critic, CriticConfig, MultiFcQ, MultiFcQConfig
from tests.parity import recipes

CASES = recipes.fixtures_of_kind("ibrl", "module")
RELEASE_KEYS = json.loads((recipes.HERE / "fixtures" / "release_state_dict_keys.json").read_text())

Tensors = dict[str, torch.Tensor]


def run_encoder(net: Any, x: Tensors) -> Tensors:
    flat = net(x["obs"])
    return {
        "patch": net(x["obs"], flatten=False),
        "flat": flat,
        "flat_sum": flat.double().sum(1),
        "dims": torch.tensor([net.repr_dim, net.num_patch, net.patch_repr_dim]),
    }


def run_actor(net: Any, x: Tensors) -> Tensors:
    dist = net(x, std=0.1)
    return {"mean": dist.mean, "scale": dist.scale}


def run_critic(net: Any, x: Tensors) -> Tensors:
    q = net(x, x["action"])
    return {"q1": q[:, 0], "q2": q[:, 1]}


def run_bc(net: Any, x: Tensors) -> Tensors:
    net.aug = nn.Identity()
    obs = {k: v for k, v in x.items() if k != "action"}
    loss = net.loss(SimpleNamespace(obs=obs, action=x["action"]))
    single = net.act({k: v[0] for k, v in obs.items()})
    return {"act": net.act(obs), "act_single": single, "loss": loss, "loss_no_aug": loss}


# outputs that each class records; a class that is not here fails its fixture
RUNNERS: dict[str, Callable[[Any, Tensors], Tensors]] = {
    "networks.encoder.VitEncoder": run_encoder,
    "networks.encoder.ResNetEncoder": run_encoder,
    "networks.encoder.ResNet96Encoder": run_encoder,
    "networks.encoder.DrQEncoder": run_encoder,
    "networks.min_vit.MinVit": lambda net, x: {"y": net(x["x"])},
    "rl.actor.Actor": run_actor,
    "rl.actor.FcActor": run_actor,
    "rl.critic.Critic": run_critic,
    "rl.critic.MultiFcQ": lambda net, x: {"q": net(x, x["action"])},
    "bc.multiview_encoder.MultiViewEncoder": lambda net, x: {
        "h": net(x),
        "repr_dim": torch.tensor([net.repr_dim]),
    },
    "bc.bc_policy.BcPolicy": run_bc,
    "bc.bc_policy.StateBcPolicy": run_bc,
    "mw_main.bc_policy.BcPolicy": run_bc,
}


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_module(case: recipes.Fixture) -> None:
    runner = RUNNERS.get(case.spec["cls"])
    assert runner is not None, f"no runner for {case.spec['cls']}"
    net: Any = recipes.build_module(case.spec)
    with torch.no_grad():
        outputs = runner(net, case.inputs())
        exact: dict[str, torch.Tensor] = {}
        if case.name.startswith("resnet"):
            exact = runner(net.double(), {k: v.double() for k, v in case.inputs().items()})
    expected = case.arrays
    assert expected, f"{case.name} records no outputs"
    for name, value in expected.items():
        assert name in outputs, f"{case.name}: output '{name}' is not computed here"
        if case.name.startswith("resnet") and name != "dims":
            # group norms of small variance enlarge rounding, and CPUs round differently: up to
            # 2.8e-5 in the fixture and 6.1e-5 on a Zen 3, both measured against float64
            recipes.assert_close(exact[name], value, name, atol=4e-5)
            recipes.assert_close(outputs[name], exact[name].numpy(), name, atol=1e-4)
        elif name == "flat_sum":
            atol = recipes.ATOL * net.repr_dim  # a sum of repr_dim rounded values
            recipes.assert_close(outputs[name], value, name, atol=atol)
        else:
            recipes.assert_close(outputs[name], value, name)


class ReleaseAgent(nn.Module):
    """The parts of a QAgent that its checkpoint holds."""

    def __init__(self, encoder: nn.Module | None, critic: nn.Module, actor: nn.Module) -> None:
        super().__init__()
        if encoder is not None:
            self.encoder = encoder
        self.critic, self.actor = critic, actor
        self.critic_target, self.actor_target = critic, actor  # same keys and shapes


def pixel_agent(
    encoder: VitEncoder | DrQEncoder, prop: int, action: int, critic: CriticConfig, feature: int
) -> ReleaseAgent:
    dims = (encoder.repr_dim, encoder.patch_repr_dim, prop, action)
    actor = Actor(*dims, ActorConfig(feature_dim=feature, hidden_dim=1024))
    return ReleaseAgent(encoder, Critic(*dims, critic), actor)


def can_pixel() -> nn.Module:
    vit = VitEncoder([3, 96, 96], VitEncoderConfig(embed_style="embed2", depth=1))
    critic = CriticConfig(spatial_emb=1024, hidden_dim=1024)
    return pixel_agent(vit, 27, 7, critic, 128)


def can_state() -> nn.Module:
    critic = MultiFcQ([69], 7, MultiFcQConfig(num_q=5, layer_norm=1, hidden_dim=1024))
    return ReleaseAgent(None, critic, FcActor([69], 7, FcActorConfig(hidden_dim=1024)))


def metaworld() -> nn.Module:
    return pixel_agent(DrQEncoder([3, 96, 96]), 0, 4, CriticConfig(feature_dim=64), 64)


RELEASE: dict[str, Callable[[], nn.Module]] = {
    "can_ibrl.yaml (pixel, prop_stack 3)": can_pixel,
    "can_state_ibrl.yaml (state 69)": can_state,
    "metaworld/ibrl_basic.yaml": metaworld,
    "robomimic_bc/can.yaml BcPolicy": lambda: BcPolicy(
        [3, 96, 96], [9], 7, ["robot0_eye_in_hand"], BcPolicyConfig()
    ),
    "robomimic_bc/square.yaml BcPolicy (prop_stack 3)": lambda: BcPolicy(
        [3, 96, 96], [27], 7, ["agentview"], BcPolicyConfig(use_prop=1)
    ),
    "robomimic_bc/can_state.yaml StateBcPolicy": lambda: StateBcPolicy(
        [69], 7, StateBcPolicyConfig(hidden_dim=1024)
    ),
    "mw_main BcPolicy": lambda: MwBcPolicy([3, 96, 96], [4], 4),
}


@pytest.mark.parametrize("config", RELEASE_KEYS)
def test_release_checkpoints_fit(config: str) -> None:
    state = RELEASE[config]().state_dict()
    assert {k: list(v.shape) for k, v in state.items()} == RELEASE_KEYS[config]
