"""Every released RL configuration at small widths, with random batches of its task's sizes."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from benchmarks import update
from common_utils.specs import Batch, Obs
from rl.q_agent import QAgent

CASES = update.rl_cases()
ROWS = 3


class Small(NamedTuple):
    """A small agent of a released configuration, and arguments of its calls."""

    agent: QAgent
    batch: Batch
    # further arguments of update: RFT's demonstrations and reference agent
    rft: dict[str, Any]
    # one observation, without a batch axis
    obs: Obs


def small(case: str, device: str = "cpu", **options: Any) -> Small:
    """The configuration ``case`` with narrow layers; ``options`` are fields of its agent."""
    cfg = update.config_of(case)
    q_cfg = cfg.own_section
    q_cfg.vit.embed_dim, q_cfg.vit.num_heads = 16, 2
    q_cfg.critic.hidden_dim = q_cfg.actor.hidden_dim = 32
    q_cfg.critic.spatial_emb = min(q_cfg.critic.spatial_emb, 16)
    q_cfg.state_critic.hidden_dim = q_cfg.state_actor.hidden_dim = 32
    for name, value in options.items():
        section, _, field = name.rpartition(".")
        setattr(getattr(q_cfg, section) if section else q_cfg, field, value)
    torch.manual_seed(0)
    agent, observe = update.make_agent(case, cfg, device)
    batch = update.make_batch(agent, observe, ROWS)
    rft = {"bc_batch": batch, "ref_agent": agent.reference_copy()} if cfg.add_bc_loss else {}
    return Small(agent, batch, rft, {k: v[0] for k, v in observe(1).items()})
