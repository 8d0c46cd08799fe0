"""QAgent against the official program: acting, two updates, one pretraining step.

Discovers every fixture of kind ``agent`` in the folder PARITY_FIXTURES/ibrl. Besides the
recorded outputs it checks the sums of all parameters after each update, and the sums of
the gradients that each optimiser saw.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from bc.explicit.bc_policy import BcPolicy, BcPolicyConfig, StateBcPolicy, StateBcPolicyConfig
from bc.explicit.mw_bc_policy import BcPolicy as MwBcPolicy
from bc.explicit.mw_bc_policy import BcPolicyConfig as MwBcPolicyConfig
from common_utils.specs import Batch
from rl.q_agent import QAgent
from rl.q_agent_config import QAgentConfig
from rl.selection import select_candidate
from tests.parity import recipes

CASES = recipes.fixtures_of_kind("ibrl", "agent")

# Float rounding: README of the fixtures. Convolutional encoders accumulate differently.
RTOL, ATOL, ATOL_CONV_Q = 1e-4, 1e-5, 5e-4


def build_agent(fixture: recipes.Fixture, weights: dict[str, Any], **override: Any) -> QAgent:
    ctor = fixture.spec["ctor"]
    cfg = recipes.make_config(QAgentConfig, fixture.spec["config"] | override)
    agent = QAgent(**ctor, cfg=cfg)
    recipes.load_weights(agent, weights)
    if not agent.use_state:
        agent.head.aug = nn.Identity()  # type: ignore[attr-defined]
    indices = fixture.spec["fixed_forward_k_indices"]
    if indices is not None:
        for critic in (agent.critic, agent.critic_target):
            critic.draw_members = lambda rng: list(indices)  # type: ignore[method-assign]
    return agent


def build_bc(spec: dict[str, Any]) -> nn.Module:
    makers: dict[str, Any] = {
        "bc.bc_policy.StateBcPolicy": (StateBcPolicy, StateBcPolicyConfig),
        "bc.bc_policy.BcPolicy": (BcPolicy, BcPolicyConfig),
        "mw_main.bc_policy.BcPolicy": (MwBcPolicy, MwBcPolicyConfig),
    }
    cls, cfg_cls = makers[spec["cls"]]
    policy = cls(**spec["ctor"], cfg=recipes.make_config(cfg_cls, spec["config"]))
    recipes.load_weights(policy, spec["weights"])
    return policy


@pytest.fixture(params=CASES, ids=[c.name for c in CASES])
def case(request: pytest.FixtureRequest) -> recipes.Fixture:
    torch.manual_seed(0)
    return request.param


def fresh(case: recipes.Fixture) -> tuple[QAgent, QAgent | None]:
    agent = build_agent(case, case.spec["weights"])
    if case.spec["bc"] is not None:
        agent.add_bc_policy(build_bc(case.spec["bc"]))
    ref = case.spec["ref_agent"]
    ref_agent = (
        build_agent(case, ref["weights"], act_method="rl", bootstrap_method="rl") if ref else None
    )
    return agent, ref_agent


def group(inputs: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {k[len(prefix) :]: v for k, v in inputs.items() if k.startswith(prefix)}


def make_batch(inputs: dict[str, torch.Tensor], i: int) -> tuple[Batch, Batch | None]:
    def get(name: str) -> torch.Tensor:
        return inputs[f"s{i}.{name}"]

    obs, next_obs = group(inputs, f"s{i}.obs."), group(inputs, f"s{i}.next_obs.")
    batch = Batch(obs, next_obs, get("action"), get("reward"), get("bootstrap"))
    bc_obs = group(inputs, f"s{i}.bc_obs.")
    if not bc_obs:
        return batch, None
    zeros = torch.zeros(len(batch.reward))
    return batch, Batch(bc_obs, bc_obs, get("bc_action"), zeros, zeros)


def tolerance(case: recipes.Fixture, name: str) -> dict[str, float]:
    convolutional = case.spec["config"]["enc_type"] != "vit" and not case.spec["ctor"]["use_state"]
    return {"rtol": RTOL, "atol": ATOL_CONV_Q if convolutional else ATOL}


def check(case: recipes.Fixture, name: str, value: torch.Tensor) -> None:
    expected = case.arrays[name]
    np.testing.assert_allclose(
        value.detach().double().numpy(), expected, err_msg=name, **tolerance(case, name)
    )


def test_act(case: recipes.Fixture) -> None:
    agent, _ = fresh(case)
    agent.eval()
    obs = group(case.inputs(), "act.obs.")
    before = {k: v.clone() for k, v in obs.items()}
    check(case, "act_eval_action", agent.act(obs, eval_mode=True))
    single = agent.act({k: v[0] for k, v in obs.items()}, eval_mode=True)
    check(case, "act_eval_action_single0", single)
    feats = agent.features(obs, augment=False)
    rl = agent.actor(feats, 0.0).mean
    check(case, "act_rl_mean", rl)
    if agent.bc_policies:
        bc = agent.propose(obs)
        check(case, "act_bc_action", bc[:, 0])
        candidates = torch.cat([rl.unsqueeze(1), bc], 1)
        q = agent._target_q(feats, candidates, agent.critic_target.draw_members(agent.host_rng))
        check(case, "act_qa_target_critic", q)
        assert select_candidate(candidates, q)[1].tolist() == case.arrays["act_index"].tolist()
        beta = case.spec["config"]["soft_ibrl_beta"]
        if "act_soft_prob" in case.arrays and beta < 1e3:  # a near-infinite beta amplifies rounding
            check(case, "act_soft_prob", torch.softmax(beta * q, 1))
    assert obs.keys() == before.keys()
    assert all(torch.equal(obs[k], before[k]) for k in obs), "act() changed the caller's dict"


def record_gradients(agent: QAgent) -> dict[str, dict[str, list[float]]]:
    """Per optimiser, the [sum, abs sum] of each gradient at the moment of its step."""
    seen: dict[str, dict[str, list[float]]] = {}
    for name, opt in agent.optimizers().items():

        def hook(_opt: Any, _args: Any, _kwargs: Any, name: str = name) -> None:
            module = getattr(agent, name)
            seen[name] = {
                k: [p.grad.double().sum().item(), p.grad.double().abs().sum().item()]
                for k, p in module.named_parameters()
                if p.grad is not None
            }

        opt.register_step_pre_hook(hook)
    return seen


def test_updates(case: recipes.Fixture) -> None:
    agent, ref_agent = fresh(case)
    inputs = case.inputs()
    grads = record_gradients(agent)
    for i in range(2):
        batch, bc_batch = make_batch(inputs, i)
        with torch.no_grad():
            feats = agent.features(batch.obs, augment=True)
            next_feats = agent.features(batch.next_obs, augment=True)
            target_q, _ = agent.compute_target_q(batch, next_feats, stddev=0.0)
            check(case, f"s{i}_target_q", target_q)
            q = agent.critic(feats, batch.action)
        expected_q = case.arrays[f"s{i}_q_pred"]
        check(case, f"s{i}_q_pred", q if q.shape == expected_q.shape else q.T)
        metrics = agent.update(batch, 0.0, True, bc_batch, ref_agent)
        recorded = [k for k in case.arrays if k.startswith(f"s{i}_") and "." in k]
        assert any("critic_loss" in k for k in recorded)
        for key in recorded:
            metric = key[len(f"s{i}_") :].replace(".", "/")
            assert metric in metrics, f"{metric} is not reported"
            check(case, key, torch.as_tensor(metrics[metric]))
        check_sums(case, f"s{i}", agent, grads)


def test_pretrain(case: recipes.Fixture) -> None:
    agent, _ = fresh(case)
    grads = record_gradients(agent)
    batch, _ = make_batch(case.inputs(), 0)
    metrics = agent.pretrain_actor_with_bc(batch)
    check(case, "pretrain_loss", metrics["pretrain/loss"])
    check_sums(case, "pretrain", agent, grads)


def check_sums(
    case: recipes.Fixture, stage: str, agent: QAgent, grads: dict[str, dict[str, list[float]]]
) -> None:
    sums = case.spec["param_sums"]
    lr = case.spec["config"]["lr"]
    name = f"{stage}_sums" if stage == "pretrain" else f"{stage}_param_sums"
    f32, f64 = sums[f"f32_{name}"], sums[f"f64_{name}"]
    grad_f32 = sums.get(f"f32_{stage}_grad_sums", {})
    grad_f64 = sums.get(f"f64_{stage}_grad_sums", {})
    for key, value in agent.state_dict().items():
        total, magnitude = value.double().sum().item(), value.double().abs().sum().item()
        tol = max(1e-5 * f32[key][1], 4 * abs(f32[key][0] - f64[key][0]), 1e-6)
        if ill_conditioned(key, case):
            tol += 2 * lr * value.numel()
        assert abs(total - f32[key][0]) <= tol, (stage, key, total, f32[key])
        assert abs(magnitude - f32[key][1]) <= tol, (stage, key, magnitude, f32[key])
    for module, by_key in grad_f32.items():
        for key, (want, want_abs) in by_key.items():
            got, got_abs = grads[module][key]
            if grad_f64[module][key][1] < 1e-12:
                continue  # zero in exact arithmetic: only rounding noise is left
            tol = max(2e-4 * want_abs, 4 * abs(want - grad_f64[module][key][0]), 1e-7)
            assert abs(got - want) <= tol, (stage, module, key, got, want)
            assert abs(got_abs - want_abs) <= tol, (stage, module, key, got_abs, want_abs)


def ill_conditioned(key: str, case: recipes.Fixture) -> bool:
    """Keys whose gradient is zero in theory: Adam turns the rounding noise into steps of lr."""
    if key.endswith("mha.qkv_proj.bias"):
        return True
    layer_norm = case.spec["config"]["state_critic"]["layer_norm"] == 1
    return layer_norm and key.startswith("critic") and key.endswith(".biases")


def test_there_are_cases() -> None:
    assert CASES, "no fixture of kind 'agent' found; is PARITY_FIXTURES right?"
