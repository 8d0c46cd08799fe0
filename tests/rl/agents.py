"""Small agents, policies and batches for the tests of ``rl/``."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import nn

from common_utils.specs import Batch, Obs
from networks.encoder import VitEncoderConfig
from rl.actor import ActorConfig, FcActorConfig
from rl.critic import CriticConfig, MultiFcQConfig
from rl.q_agent import QAgent
from rl.q_agent_config import QAgentConfig

S, A, P, CAMERA, IMAGE = 6, 3, 4, "front", (3, 96, 96)


def state_config(dropout: float = 0.0, num_k: int = 2, **options: Any) -> QAgentConfig:
    return QAgentConfig(
        device="cpu",
        state_critic=MultiFcQConfig(num_q=5, num_k=num_k, num_layer=2, hidden_dim=16),
        state_actor=FcActorConfig(num_layer=2, hidden_dim=16, dropout=dropout),
        **options,
    )


def state_agent(*, dropout: float = 0.0, num_k: int = 2, seed: int = 0, **options: Any) -> QAgent:
    """Random networks, targets unlike the online ones; the same for the same seed."""
    torch.manual_seed(seed)
    agent = QAgent(1, (S,), (0,), A, "", state_config(dropout, num_k, **options), seed=seed)
    return unlike_targets(agent)


def pixel_config(dropout: float = 0.0, **options: Any) -> QAgentConfig:
    return QAgentConfig(
        **{
            "device": "cpu",
            "vit": VitEncoderConfig(depth=1, embed_dim=16, num_heads=2),
            "critic": CriticConfig(spatial_emb=8, hidden_dim=16),
            "actor": ActorConfig(feature_dim=8, hidden_dim=16, dropout=dropout),
            "use_prop": 1,
            **options,
        }
    )


def pixel_agent(*, dropout: float = 0.0, seed: int = 0, **options: Any) -> QAgent:
    torch.manual_seed(seed)
    cfg = pixel_config(dropout, **options)
    return unlike_targets(QAgent(0, IMAGE, (P,), A, CAMERA, cfg, seed=seed))


def unlike_targets(agent: QAgent) -> QAgent:
    """As after some training: targets that differ from the networks they follow."""
    with torch.no_grad():
        for p in [*agent.critic_target.parameters(), *agent.actor_target.parameters()]:
            p.add_(0.1 * torch.randn_like(p))
    return agent


class LinearPolicy(nn.Module):
    """a = tanh(W x): a BC policy that proposes ``n`` actions around its own, and counts calls."""

    stochastic_eval = False

    def __init__(self, seed: int, key: str = "state", spread: float = 0.0) -> None:
        super().__init__()
        gen = torch.Generator().manual_seed(seed)
        dim = {"state": S, "prop": P}[key]
        self.key, self.spread, self.calls = key, spread, 0
        self.weight = nn.Parameter(0.7 * torch.randn(dim, A, generator=gen))

    def act(
        self, obs: Obs, *, eval_mode: bool = True, cpu: bool = True, generator: Any = None
    ) -> torch.Tensor:
        return torch.tanh(obs[self.key] @ self.weight)

    def propose(self, obs: Obs, n: int, *, generator: Any = None) -> torch.Tensor:
        assert not self.training
        self.calls += 1
        offsets = self.spread * torch.arange(n, dtype=torch.float32).view(1, n, 1)
        return (self.act(obs).unsqueeze(1) + offsets).clamp(-1, 1)

    def loss(self, batch: Any) -> torch.Tensor:
        return (self.act(batch.obs) - batch.action).square().sum(1).mean()


def observe(b: int, seed: int, pixels: bool = False) -> Obs:
    gen = torch.Generator().manual_seed(seed)
    if not pixels:
        return {"state": torch.randn(b, S, generator=gen)}
    image = torch.randint(0, 256, (b, *IMAGE), generator=gen, dtype=torch.uint8)
    return {CAMERA: image, "prop": torch.randn(b, P, generator=gen)}


def make_batch(b: int = 8, seed: int = 0, pixels: bool = False) -> Batch:
    gen = torch.Generator().manual_seed(seed + 1000)
    return Batch(
        observe(b, seed, pixels),
        observe(b, seed + 1, pixels),
        torch.rand(b, A, generator=gen) * 2 - 1,
        torch.rand(b, generator=gen),
        0.97 * (torch.rand(b, generator=gen) > 0.3).float(),
    )


def with_cache(agent: QAgent, batch: Batch) -> Batch:
    """The batch as the replay would give it: BC proposals stored beside the observations."""
    return replace(
        batch,
        bc_action=agent.propose(batch.obs),
        next_bc_action=agent.propose(batch.next_obs),
    )
