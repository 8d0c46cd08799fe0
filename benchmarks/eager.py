"""The published update written plainly in torch: the baseline of every speed ratio.

An :class:`EagerAgent` has an agent's networks and weights and computes the update as the original
program does (``docs/reference``): the BC policy runs on the next observation of every
batch, the target critic runs again on the action that it has just chosen, every critic evaluates
all of its members and each candidate from scratch, Adam is not fused, and every metric is read
at once. A test checks that the numbers are the same up to rounding. The layers are torch's own.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from common_utils.specs import Batch, Obs
from networks import conv, mlp, resnet, spatial
from networks.encoder import DrQEncoder, VitEncoder, scale_image
from rl import critic as critics
from rl.q_agent import QAgent
from rl.selection import select_candidate


class _BasicBlock(resnet.BasicBlock):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        out = self.bn2(self.conv2(out))
        shortcut = x if self.downsample is None else self.downsample(x)
        return F.relu(out + shortcut, inplace=True)


class _ResNet(resnet.ResNet):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.init_downsample(x)
        return self.layer4(self.layer3(self.layer2(self.layer1(x))))


class _SpatialEmb(spatial.SpatialEmb):
    def forward(self, feat: torch.Tensor, prop: torch.Tensor | None = None) -> torch.Tensor:
        rows = feat.transpose(1, 2)
        if self.prop_dim > 0 and prop is not None:
            rows = torch.cat([rows, prop.unsqueeze(1).expand(-1, rows.size(1), -1)], dim=-1)
        return self.dropout((self.input_proj(rows) * self.weight).sum(dim=1))


class _QNet(critics._QNet):
    def forward(
        self, feat: torch.Tensor, prop: torch.Tensor | None, actions: torch.Tensor
    ) -> torch.Tensor:
        parts = [self.obs_proj(feat.flatten(1)), actions[:, 0]]
        return self.q(torch.cat(parts if prop is None else [*parts, prop], dim=-1))


class _SpatialEmbQNet(critics.SpatialEmbQNet):
    def forward(
        self, feat: torch.Tensor, prop: torch.Tensor | None, actions: torch.Tensor
    ) -> torch.Tensor:
        action = actions[:, 0]
        rows = feat.transpose(1, 2) if self.fuse_patch else feat
        per_row = [action] if prop is None else [action, prop]
        parts = [rows, *(x.unsqueeze(1).expand(-1, rows.size(1), -1) for x in per_row)]
        z = (self.input_proj(torch.cat(parts, dim=-1)) * self.weight).sum(dim=1)
        return self.q(torch.cat([z, action] if prop is None else [z, prop, action], dim=-1))


class _EnsembleMLP(mlp.EnsembleMLP):
    def forward(self, x: torch.Tensor, members: Any = None) -> torch.Tensor:  # type: ignore[override]
        return self.plain(x)


class _DrQEncoder(DrQEncoder):
    channels_last = False


class _VitEncoder(VitEncoder):
    def forward(self, obs: torch.Tensor, flatten: bool = True) -> torch.Tensor:
        h = self.vit(scale_image(obs))
        return h.flatten(1) if flatten else h


# our class -> the same module (and parameters) with a plain forward
PLAIN: dict[type[nn.Module], type[nn.Module]] = {
    conv.Conv2d: nn.Conv2d,
    resnet.BasicBlock: _BasicBlock,
    resnet.ResNet: _ResNet,
    mlp.Linear: nn.Linear,
    mlp.MLP: nn.Sequential,
    mlp.EnsembleMLP: _EnsembleMLP,
    spatial.SpatialEmb: _SpatialEmb,
    critics._QNet: _QNet,
    critics.SpatialEmbQNet: _SpatialEmbQNet,
    DrQEncoder: _DrQEncoder,
    VitEncoder: _VitEncoder,
}


def plainly(module: Any) -> Any:
    """A copy of ``module`` whose forward pass is torch's own operations."""
    module = copy.deepcopy(module)
    for part in module.modules():
        part.__class__ = PLAIN.get(type(part), type(part))
    return module


class EagerAgent:
    """The published agent on the networks of ``agent``, which is not changed."""

    def __init__(self, agent: QAgent) -> None:
        self.cfg, self.mine = agent.cfg, agent
        self.agent = plainly(agent)
        self.critic, self.critic_target = self.agent.critic, self.agent.critic_target
        self.actor, self.actor_target = self.agent.actor, self.agent.actor_target
        self.bc_policies = [plainly(p) for p in agent.bc_policies]
        self.encoder = self.agent.head.parts().get("encoder")
        parts = {"critic": self.critic, "actor": self.actor, "encoder": self.encoder}
        self.optim = {
            name: torch.optim.Adam(part.parameters(), lr=self.cfg.lr)
            for name, part in parts.items() if part is not None
        }  # fmt: skip

    def _min_q(self, critic: Any, feats: Obs, action: torch.Tensor) -> torch.Tensor:
        """The smallest value of the drawn members; all members are computed."""
        q = critic(feats, action).flatten(1)
        return q[:, critic.draw_members(self.agent.host_rng)].min(dim=-1).values

    def _propose(self, obs: Mapping[str, torch.Tensor]) -> list[torch.Tensor]:
        return [policy.act(obs, cpu=False) for policy in self.bc_policies]

    def _choose(
        self, feats: Obs, rl_action: torch.Tensor, obs: Mapping[str, torch.Tensor], method: str
    ) -> torch.Tensor:
        if method == "rl":
            return rl_action
        candidates = [rl_action, *self._propose(obs)]
        members = self.critic_target.draw_members(self.agent.host_rng)
        q = torch.stack(
            [self.critic_target(feats, a)[:, members].min(-1).values for a in candidates], 1
        )
        soft = self.cfg.soft_ibrl_beta if method == "ibrl_soft" else None
        every = torch.stack(candidates, dim=1)
        return select_candidate(every, q, soft_beta=soft, generator=self.agent.rng)[0]

    @torch.no_grad()
    def act(self, obs: Mapping[str, torch.Tensor], stddev: float) -> torch.Tensor:
        """Action [A] for one observation, exploring."""
        batched = {k: v.unsqueeze(0) for k, v in obs.items()}
        feats = self.agent.features(batched, augment=False)
        action = self.actor(feats, stddev).sample(clip=None, generator=self.agent.rng)
        return self._choose(feats, action, batched, self.agent.act_method)[0].cpu()

    def update(
        self, batch: Batch, stddev: float, update_actor: bool, **rft: Any
    ) -> dict[str, float]:
        """One critic step, and one actor step if asked; metrics are numbers."""
        feats = self.agent.features(batch.obs, augment=True)
        with torch.no_grad():
            after = self.agent.features(batch.next_obs, augment=True)
            drawn = self.actor_target(after, stddev)
            action = drawn.sample(clip=self.cfg.stddev_clip, generator=self.agent.rng)
            action = self._choose(after, action, batch.next_obs, self.agent.bootstrap_method)
            q = self._min_q(self.critic_target, after, action)
            target = batch.reward + batch.bootstrap * q
        error = self.critic(feats, batch.action) - target.unsqueeze(-1)
        loss = error.square().sum(dim=-1).mean()
        self._step(loss, "critic", "encoder")
        self._follow(self.critic, self.critic_target)
        metrics = {"train/critic_loss": loss.item(), "train/critic_qt": target.mean().item()}
        metrics |= {"data/batch_R": batch.reward.mean().item()}
        metrics |= {"data/discount": batch.bootstrap.mean().item()}
        if update_actor:
            feats = {k: v.detach() for k, v in feats.items()}
            metrics |= self._update_actor(feats, stddev, **rft)
            self._follow(self.actor, self.actor_target)
        return metrics

    def _update_actor(
        self, feats: Obs, stddev: float, bc_batch: Batch | None = None, ref_agent: Any = None
    ) -> dict[str, float]:
        action = self.actor(feats, stddev).sample(
            clip=self.cfg.stddev_clip, generator=self.agent.rng
        )
        loss = -self.critic(feats, action).min(dim=-1).values.mean()
        metrics = {"train/actor_loss": loss.item()}
        if bc_batch is not None:
            bc_loss, ratio = self._bc_loss(bc_batch), 1.0
            if self.cfg.bc_loss_dynamic:
                ratio = self._bc_ratio(bc_batch.obs, ref_agent)
            loss = loss + self.cfg.bc_loss_coef * ratio * bc_loss
            metrics |= {"rft/bc_loss": bc_loss.item(), "rft/ratio": ratio}
        self._step(loss, "actor")
        return metrics

    def _bc_loss(self, batch: Batch) -> torch.Tensor:
        with torch.no_grad():
            feats = self.agent.features(batch.obs, augment=True)
        pred = self.actor(feats, 0.0).sample(clip=None, generator=self.agent.rng)
        return (pred - batch.action).square().sum(dim=1).mean()

    @torch.no_grad()
    def _bc_ratio(self, obs: Obs, ref_agent: Any) -> float:
        """Share of the states where the reference's action is better."""
        self.agent.eval()
        feats = self.agent.features(obs, augment=False)
        theirs = ref_agent.actor(ref_agent.features(obs, augment=False), 0.0).mean
        mine = self.actor(feats, 0.0).mean
        better = self._min_q(self.critic, feats, theirs) > self._min_q(self.critic, feats, mine)
        self.agent.train()
        return better.float().mean().item()

    def _step(self, loss: torch.Tensor, *names: str) -> None:
        used = [self.optim[name] for name in names if name in self.optim]
        for optim in used:
            optim.zero_grad()
        loss.backward()
        for optim in reversed(used):
            optim.step()

    def _follow(self, net: nn.Module, target: nn.Module) -> None:
        tau = self.cfg.critic_target_tau
        for mine, theirs in zip(net.parameters(), target.parameters(), strict=True):
            theirs.data.copy_(tau * mine.data + (1 - tau) * theirs.data)
