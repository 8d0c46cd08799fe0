"""An agent as somebody would add one: this file, and one row in ``rl.registry``.

A deterministic actor and one critic without targets, which choose among their own action and the
BC policies'. It has none of what is optional: no RFT, no statistics, no further evaluations.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from common_utils.specs import BC_ACTION, Batch, Obs
from rl.agent import Agent, AgentConfig, AgentInputs, Networks
from rl.registry import AgentKind
from rl.selection import select_candidate


@dataclass
class ToyAgentConfig(AgentConfig):
    """The toy agent."""

    # width of the hidden layers
    width: int = 32
    # Adam step size
    lr: float = 1e-3

    def __post_init__(self) -> None:
        if self.width < 1:
            raise ValueError(f"width: {self.width}, expected at least 1")


def networks(inputs: AgentInputs, cfg: ToyAgentConfig) -> Networks:
    """Actor and critic on states."""
    seen, made = inputs.obs_shape[0], inputs.action_dim

    def mlp(width_in: int, out: int) -> nn.Sequential:
        return nn.Sequential(nn.Linear(width_in, cfg.width), nn.ReLU(), nn.Linear(cfg.width, out))

    return Networks({"critic": mlp(seen + made, 1), "actor": mlp(seen, made)})


class ToyAgent(Agent):
    """{"state": float32 [B, S]} -> the candidate that the critic values most."""

    stochastic_eval = False
    input_keys = ["state"]  # noqa: RUF012

    def __init__(self, inputs: AgentInputs, cfg: ToyAgentConfig) -> None:
        super().__init__(cfg.device, cfg.num_bc_samples, inputs.seed)
        parts = networks(inputs, cfg).trained
        self.critic, self.actor = parts["critic"], parts["actor"]
        self.to(self.device)
        self._opts = {k: torch.optim.Adam(m.parameters(), lr=cfg.lr) for k, m in parts.items()}

    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        return dict(self._opts)

    def _choose(self, state: torch.Tensor, own: torch.Tensor, bc: torch.Tensor | None) -> Any:
        """The best candidate [B, A], its value [B], and its index [B]."""
        candidates = own.unsqueeze(1) if bc is None else torch.cat([own.unsqueeze(1), bc], dim=1)
        states = state.unsqueeze(1).expand(-1, candidates.size(1), -1)
        q = self.critic(torch.cat([states, candidates], dim=-1)).squeeze(-1)
        action, index = select_candidate(candidates, q, generator=self.rng)
        return action, q.max(dim=1).values, index

    @torch.no_grad()
    def act(
        self,
        obs: Mapping[str, torch.Tensor],
        *,
        eval_mode: bool = False,
        stddev: float = 0.0,
        cpu: bool = True,
        generator: torch.Generator | None = None,
    ) -> torch.Tensor:
        inputs, batched = self._to_batched(obs, 2)
        own = self.actor(inputs["state"]).tanh()
        if not eval_mode:
            noise = torch.randn(own.shape, generator=self.rng, device=own.device)
            own = (own + stddev * noise).clamp(-1, 1)
        bc = inputs.get(BC_ACTION)
        if bc is None and self.bc_policies:
            bc = self.propose(inputs, self._on_device(generator))
        action = self._choose(inputs["state"], own, bc)[0]
        action = action if batched else action.squeeze(0)
        return action.cpu() if cpu else action

    def update(
        self,
        batch: Batch,
        stddev: float,
        update_actor: bool,
        bc_batch: Batch | None = None,
        ref_agent: Any = None,
    ) -> dict[str, torch.Tensor]:
        state, following = batch.obs["state"], batch.next_obs["state"]
        with torch.no_grad():
            own = self.actor(following).tanh()
            _, value, index = self._choose(following, own, batch.next_bc_action)
        q = self.critic(torch.cat([state, batch.action], dim=-1)).squeeze(-1)
        loss = (q - batch.reward - batch.bootstrap * value).square().mean()
        self._step(loss, "critic")
        metrics = {
            "train/critic_loss": loss.detach(),
            "actor/bootstrap_bc": (index > 0).float().mean(),
        }
        if update_actor:
            metrics |= self._update_actor({"state": state})
        return metrics

    def _update_actor(self, obs: Obs) -> dict[str, torch.Tensor]:
        action = self.actor(obs["state"]).tanh()
        loss = -self.critic(torch.cat([obs["state"], action], dim=-1)).mean()
        self._step(loss, "actor")
        return {"train/actor_loss": loss.detach()}

    def _step(self, loss: torch.Tensor, name: str) -> None:
        self._opts[name].zero_grad()
        loss.backward()
        self._opts[name].step()


ROW = AgentKind(ToyAgentConfig, ToyAgent, networks, ("state",), "toy")
