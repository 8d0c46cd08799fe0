"""A run's policies and agent, built from its config and loaded from weights."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

import train_bc
from common_utils.run_config import ConfigError
from common_utils.seeding import seed_for
from common_utils.specs import EnvSpec
from rl.q_agent import QAgent

if TYPE_CHECKING:
    from train_rl import MainConfig


def inherit_env(cfg: MainConfig) -> None:
    """Fill what the config leaves to the BC policy's run: task, image size, action repeat."""
    fields = {
        "task_name": "task",
        "rl_image_size": "rl_image_size",
        "action_repeat": "action_repeat",
    }
    missing = [name for name in fields if not getattr(cfg, name)]
    if not missing:
        return
    if not cfg.bc_policy:
        raise ConfigError(f"{missing[0]}: not given, and there is no bc_policy to take it from")
    env = train_bc.load_config(cfg.bc_policy.split("+")[0]).env
    for name in missing:
        setattr(cfg, name, getattr(env, fields[name]))


def load_bc_policies(cfg: MainConfig) -> tuple[list[Any], list[str]]:
    """The BC policies of a run and the cameras they look through."""
    if not cfg.bc_policy or not cfg.use_bc:
        return [], []
    policies = [train_bc.load_policy(p, cfg.q_agent.device)[0] for p in cfg.bc_policy.split("+")]
    cameras = [k for p in policies for k, s in p.input_specs().items() if len(s.shape) == 3]
    return policies, list(dict.fromkeys(cameras))


def build_agent(cfg: MainConfig, spec: EnvSpec, bc_policies: list[Any]) -> QAgent:
    """The agent of a run, checked against what the environment delivers."""
    needs_bc = "ibrl" in cfg.q_agent.act_method + cfg.q_agent.bootstrap_method
    if needs_bc and not bc_policies:
        raise ConfigError(
            f"q_agent.act_method '{cfg.q_agent.act_method}', q_agent.bootstrap_method "
            f"'{cfg.q_agent.bootstrap_method}' need a BC policy: bc_policy is "
            f"'{cfg.bc_policy}', use_bc {cfg.use_bc}"
        )
    obs_key = "state" if cfg.use_state else cfg.rl_camera
    for policy in bc_policies:
        spec.check_provides(policy.input_specs(), spec.action_dim, f"bc_policy {cfg.bc_policy}")
    prop = spec.observations.get("prop")
    agent = QAgent(
        cfg.use_state,
        spec.observations[obs_key].shape,
        prop.shape if prop is not None else (0,),
        spec.action_dim,
        cfg.rl_camera,
        cfg.q_agent,
        seed=seed_for(cfg.seed, "agent", bits=31),
    )
    for policy in bc_policies:
        agent.add_bc_policy(policy)
    return agent


def load_weights(path: str | Path, what: str) -> dict[str, torch.Tensor]:
    """A bare state_dict from a .pt file, read safely."""
    if not Path(path).is_file():
        raise ConfigError(f"{what}: no file '{path}'; train it first (README, section Weights)")
    return torch.load(path, map_location="cpu", weights_only=True)


def load_pretrained(agent: QAgent, path: str, policy_only: bool) -> None:
    """Start from another agent's weights; with ``policy_only`` the fresh critics stay."""
    weights = load_weights(path, "load_pretrained_agent")
    if policy_only:
        fresh = agent.state_dict()
        weights |= {k: v for k, v in fresh.items() if k.startswith("critic.")}
        weights |= {
            "critic_target." + k[7:]: v for k, v in fresh.items() if k.startswith("critic.")
        }
    agent.load_state_dict(weights)
