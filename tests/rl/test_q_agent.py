"""What a QAgent is made of: configuration, modes, weights, resume, the reference copy."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import pytest
import torch

from common_utils import run_config
from common_utils.run_config import ConfigError
from common_utils.specs import Batch
from networks.encoder import VitEncoder
from rl.actor import ActorConfig
from rl.q_agent import QAgent
from rl.q_agent_config import QAgentConfig
from tests.rl.agents import (
    CAMERA,
    IMAGE,
    A,
    LinearPolicy,
    P,
    S,
    make_batch,
    observe,
    pixel_agent,
    pixel_config,
    state_agent,
    state_config,
)


def shapes(agent: QAgent) -> dict[str, tuple[int, ...]]:
    return {k: tuple(v.shape) for k, v in agent.state_dict().items()}


# ------------------------------------------------------------------- weights, modes


def official_state_keys(layers: int, hidden: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of docs/reference/ibrl.md#networks (no LayerNorm, no critic dropout)."""
    out: dict[str, tuple[int, ...]] = {}
    for suffix in ("", "_target"):
        widths = [S + A] + [hidden] * layers + [1]
        for i in range(layers + 1):
            out[f"critic{suffix}.net.{2 * i}.weights"] = (5, widths[i], widths[i + 1])
            out[f"critic{suffix}.net.{2 * i}.biases"] = (1, 5, 1)
        widths = [S] + [hidden] * layers + [A]
        for i in range(layers + 1):
            out[f"actor{suffix}.net.{3 * i}.weight"] = (widths[i + 1], widths[i])
            out[f"actor{suffix}.net.{3 * i}.bias"] = (widths[i + 1],)
    return out


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"act_method": "ibrl", "num_bc_samples": 3},
        {"act_method": "ibrl_soft", "bootstrap_method": "rl", "soft_ibrl_beta": 1.0},
        {"sync_actor_target": 1, "bc_loss_dynamic": 1, "ibrl_eps_greedy": 0.5},
    ],
)
def test_options_leave_the_official_names_and_shapes_alone(options: dict[str, Any]) -> None:
    agent = state_agent(**options)
    agent.add_bc_policy(LinearPolicy(0))
    assert shapes(agent) == official_state_keys(layers=2, hidden=16)
    agent.update(make_batch(4), 0.1, True, make_batch(4), agent.reference_copy())
    agent.finish_pretraining()
    assert shapes(agent) == official_state_keys(layers=2, hidden=16)


def test_options_that_add_weights_add_only_their_own() -> None:
    plain = shapes(state_agent())
    normed = shapes(state_agent(norm_state=1))
    assert set(normed) - set(plain) == {"state_norm.mean", "state_norm.std"}
    assert {k: v for k, v in normed.items() if k in plain} == plain
    cfg = state_config()
    cfg.state_critic.bias_per_unit = 1
    units = shapes(QAgent(1, (S,), (0,), A, "", cfg))
    assert units.keys() == plain.keys()
    differing = {k for k in plain if plain[k] != units[k]}
    assert differing == {
        f"critic{t}.net.{i}.biases" for t in ("", "_target") for i in (0, 2)
    }  # the output layer has one unit anyway


def test_pixel_weights_are_encoder_critic_actor_and_targets() -> None:
    agent = pixel_agent()
    agent.add_bc_policy(LinearPolicy(0, key="prop"))
    assert isinstance(agent.encoder, VitEncoder)
    parts = {k.split(".")[0] for k in agent.state_dict()}
    assert parts == {"encoder", "critic", "actor", "critic_target", "actor_target"}


def test_checkpoints_are_bare_and_load_strictly_and_safely() -> None:
    for make in (state_agent, pixel_agent):
        agent, other = make(seed=1), make(seed=2)
        file = io.BytesIO()
        torch.save(agent.state_dict(), file)
        file.seek(0)
        other.load_state_dict(torch.load(file, weights_only=True), strict=True)
        obs = observe(3, 0, pixels=make is pixel_agent)
        actions = [a.eval().act(obs, eval_mode=True) for a in (agent, other)]
        assert torch.equal(*actions)


def test_targets_start_as_copies_and_are_never_trained_by_gradient() -> None:
    for cfg, args in (
        (state_config(), (1, (S,), (0,), A, "")),
        (pixel_config(), (0, IMAGE, (P,), A, CAMERA)),
    ):
        agent = QAgent(*args, cfg)
        pairs = [(agent.critic, agent.critic_target), (agent.actor, agent.actor_target)]
        for online, target in pairs:
            for p, q in zip(online.parameters(), target.parameters(), strict=True):
                assert torch.equal(p, q)
                assert p.data_ptr() != q.data_ptr()
                assert p.requires_grad
                assert not q.requires_grad


def test_modes() -> None:
    """critic_target always evaluates; actor_target always trains (dropout in bootstraps)."""
    agent = pixel_agent(dropout=0.5)
    policy = LinearPolicy(0, key="prop")
    agent.add_bc_policy(policy)
    for mode in (True, False, True):
        assert agent.train(mode) is agent
        assert agent.training == mode
        for part in (agent.encoder, agent.critic, agent.actor):
            assert all(m.training == mode for m in part.modules())
        assert not any(m.training for m in agent.critic_target.modules())
        assert all(m.training for m in agent.actor_target.modules())
        assert not policy.training
    assert not any(p.requires_grad for p in policy.parameters())


def test_the_bc_policy_stays_out_of_weights_and_optimisers() -> None:
    agent = state_agent(act_method="ibrl")
    policy = LinearPolicy(0)
    before = policy.weight.clone()
    names = set(agent.state_dict())
    agent.add_bc_policy(policy)
    assert set(agent.state_dict()) == names
    agent.update(make_batch(8), 0.1, True)
    assert torch.equal(policy.weight, before)
    owned = {id(p) for p in agent.parameters()}
    assert id(policy.weight) not in owned


def test_state_normalisation() -> None:
    agent = state_agent(norm_state=1).eval()
    obs = observe(5, 1)
    raw = agent.act(obs, eval_mode=True)
    agent.fit({"state": torch.randn(250, S) * 3 + 2} for _ in range(2))
    assert not torch.allclose(agent.act(obs, eval_mode=True), raw)
    mean, std = agent.state_norm.mean, agent.state_norm.std
    plain = state_agent(norm_state=0).eval()
    plain.load_state_dict({k: v for k, v in agent.state_dict().items() if "norm" not in k})
    scaled = {"state": (obs["state"] - mean) / std}
    torch.testing.assert_close(plain.act(scaled, eval_mode=True), agent.act(obs, eval_mode=True))
    agent.train().update(make_batch(8), 0.1, True)  # statistics are data, not learned
    assert torch.equal(agent.state_norm.mean, mean)
    before = plain.act(obs, eval_mode=True)
    plain.fit(iter([{"state": torch.randn(5, S)}]))  # without the option it takes none
    assert torch.equal(plain.act(obs, eval_mode=True), before)


# ------------------------------------------------------------------- resume


def batches(pixels: bool) -> Callable[[int], Batch]:
    return lambda i: make_batch(4, seed=10 * i, pixels=pixels)


def go_on(agent: QAgent, pixels: bool, steps: int) -> list[torch.Tensor]:
    """Train, explore and evaluate; what came out."""
    out = []
    ref = agent.reference_copy()
    make = batches(pixels)
    for i in range(steps):
        agent.train()
        metrics = agent.update(make(i), 0.2, i % 2 == 1, make(i + 50), ref)
        out += [torch.as_tensor(v) for v in metrics.values()]
        agent.eval()
        out.append(agent.act(observe(3, i, pixels), stddev=0.3))
        out.append(agent.act(observe(3, i, pixels), eval_mode=True))
    return out + [v.clone() for v in agent.state_dict().values()]


@pytest.mark.parametrize("pixels", [False, True])
def test_a_restored_agent_continues_bit_for_bit(pixels: bool) -> None:
    def make(seed: int) -> QAgent:
        build = pixel_agent if pixels else state_agent
        options = {"act_method": "ibrl_soft", "ibrl_eps_greedy": 0.7, "bc_loss_dynamic": 1}
        agent = build(dropout=0.5, seed=seed, **options)
        agent.add_bc_policy(LinearPolicy(0, key="prop" if pixels else "state"))
        return agent

    agent = make(1)
    go_on(agent, pixels, 2)
    file = io.BytesIO()
    torch.save(agent.training_state(), file)
    torch_rng = torch.get_rng_state()  # dropout and augmentation; the trainer saves it
    want = go_on(agent, pixels, 4)

    restored = make(2)
    go_on(restored, pixels, 1)
    file.seek(0)
    restored.load_training_state(torch.load(file, weights_only=True))
    torch.set_rng_state(torch_rng)
    got = go_on(restored, pixels, 4)
    assert len(want) == len(got)
    different = [i for i, (a, b) in enumerate(zip(want, got, strict=True)) if not a.equal(b)]
    assert different == []


def test_the_training_state_names_everything_that_changes() -> None:
    """Leaving out any part must show: the optimisers' moments and each generator matter."""
    agent = state_agent(act_method="ibrl_soft", dropout=0.5)
    agent.add_bc_policy(LinearPolicy(0))
    before = agent.training_state()
    rng = {k: v.clone() for k, v in before.items() if isinstance(v, torch.Tensor)}
    assert set(rng) == {"rng", "host_rng", "eval_rng", "eval_host_rng"}
    go_on(agent, False, 2)
    after = agent.training_state()
    assert all(not torch.equal(rng[k], after[k]) for k in rng)
    assert set(after["optimizers"]) == {"actor", "critic"}
    assert set(pixel_agent().training_state()["optimizers"]) == {"actor", "critic", "encoder"}


# ------------------------------------------------------------------- reference copy


@pytest.mark.parametrize("pixels", [False, True])
def test_the_reference_is_a_frozen_independent_copy(pixels: bool) -> None:
    agent = (pixel_agent if pixels else state_agent)(act_method="ibrl", dropout=0.5)
    agent.add_bc_policy(LinearPolicy(0, key="prop" if pixels else "state"))
    states = [agent.rng.get_state(), agent.host_rng.get_state(), torch.get_rng_state()]
    ref = agent.reference_copy()
    after = [agent.rng.get_state(), agent.host_rng.get_state(), torch.get_rng_state()]
    assert all(torch.equal(a, b) for a, b in zip(states, after, strict=True))

    assert ref.act_method == ref.bootstrap_method == "rl"
    assert agent.act_method == "ibrl"
    assert agent.cfg.act_method == "ibrl"
    assert not any(p.requires_grad for p in ref.parameters())
    mine = {v.data_ptr() for v in agent.state_dict().values()}
    assert not mine & {v.data_ptr() for v in ref.state_dict().values()}

    obs = observe(3, 1, pixels)
    ref.eval()
    then = ref.act(obs, eval_mode=True)
    agent.eval()
    with agent.override_act_method("rl"):
        assert torch.equal(agent.act(obs, eval_mode=True), then)
    agent.train()
    frozen = {k: v.clone() for k, v in ref.state_dict().items()}
    agent.update(make_batch(4, pixels=pixels), 0.1, True, make_batch(4, pixels=pixels), ref)
    assert all(torch.equal(v, frozen[k]) for k, v in ref.state_dict().items())
    assert torch.equal(ref.act(obs, eval_mode=True), then)


def test_the_reference_takes_the_normaliser_along() -> None:
    agent = state_agent(norm_state=1)
    agent.fit([{"state": torch.randn(100, S) * 2 + 1}])
    ref = agent.reference_copy()
    assert torch.equal(ref.state_norm.mean, agent.state_norm.mean)
    assert torch.equal(ref.state_norm.std, agent.state_norm.std)


# ------------------------------------------------------------------- impossible configurations


@pytest.mark.parametrize(
    "options",
    [
        {"ibrl_eps_greedy": 1.5},
        {"ibrl_eps_greedy": -0.1},
        {"num_bc_samples": 0},
        {"critic_target_tau": 0.0},
        {"critic_target_tau": 1.5},
        {"lr": 0.0},
        {"stddev_clip": -0.3},
        {"soft_ibrl_beta": -1.0},
        {"bc_loss_coef": -0.1},
        {"act_method": "ibrl_hard"},
        {"bootstrap_method": "demo"},
        {"enc_type": "vit2"},
        {"state_critic.num_k": 11},
        {"state_actor.layer_norm": 3},
        {"vit.num_heads": 3},
        {"resnet.norm_layer": "gn0"},
        {"critic.hidden_dim": 0},
    ],
)
def test_impossible_configurations_are_refused_by_name(options: dict[str, Any]) -> None:
    (name, value), = options.items()  # fmt: skip
    with pytest.raises(ConfigError, match=name.rpartition(".")[2]) as error:
        run_config.from_dict(QAgentConfig, options)
    assert str(value) in str(error.value)


STATE = (1, (S,), (0,), A, "")
PIXEL = (0, IMAGE, (P,), A, CAMERA)


@pytest.mark.parametrize(
    "args, cfg, name",
    [
        (PIXEL, QAgentConfig(norm_state=1), "norm_state"),
        ((0, IMAGE, (0,), A, CAMERA), QAgentConfig(use_prop=1), "use_prop"),
        ((0, IMAGE, (), A, CAMERA), QAgentConfig(use_prop=1), "use_prop"),
        (STATE, QAgentConfig(device="gpu"), "device"),
        (PIXEL, QAgentConfig(actor=ActorConfig(max_action_norm=1.0)), "max_action_norm"),
        ((1, IMAGE, (0,), A, ""), QAgentConfig(), "flat state"),
    ],
)
def test_misfits_of_configuration_and_shapes_are_refused(
    args: Any, cfg: QAgentConfig, name: str
) -> None:
    with pytest.raises((ConfigError, ValueError), match=name):
        QAgent(*args, cfg)
