"""The agent: an actor, a critic ensemble, and (for IBRL) attached BC policies.

IBRL (Hu et al. 2023; docs/reference/ibrl.md) uses the BC policy twice, and both uses are the
same rule over candidate actions (``rl.selection``):

* acting ("actor proposal", eq. 2):   a = argmax over {a_RL, a_BC} of Q'(s, a)
* TD target ("bootstrap proposal", eq. 3): max over {a_RL, a_BC} of Q'(s', a)

``act_method`` chooses the first, ``bootstrap_method`` the second (default: the same).
RLPD and RFT are this agent with ``act_method = "rl"``.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from common_utils.data_aug import RandomShiftsAug
from common_utils.ibrl_utils import eval_mode as eval_mode_of
from common_utils.run_config import ConfigError, resolve_device
from common_utils.seeding import generator_on
from common_utils.specs import BC_ACTION, Batch, Obs, Policy
from networks.encoder import (
    DrQEncoder,
    ResNet96Encoder,
    ResNetEncoder,
    VitEncoder,
)
from networks.normalizer import Normalizer
from networks.optim import Adam, soft_update_params
from rl.actor import Actor, FcActor
from rl.critic import Critic, MultiFcQ
from rl.q_agent_config import ACT_METHODS, QAgentConfig, check_choice
from rl.selection import select_candidate, take


class QAgent(nn.Module):
    """Actor-critic over pixels (encoder, two Q-heads) or states (REDQ ensemble).

    Args:
        use_state: states (1) or pixels (0).
        obs_shape: [S] for states, [C, H, W] of the camera for pixels.
        prop_shape: [P]; used by pixel agents when ``cfg.use_prop``.
        action_dim: A.
        rl_camera: key of the image in the observation dict.
        cfg: QAgentConfig.
        seed: of the agent's own generators (exploration noise, subsets, augmentation aside).

    ``state_dict`` holds encoder (pixels), critic, actor and the two targets under the
    official names; BC policies and optimisers are kept out of it.
    """

    def __init__(
        self,
        use_state: int | bool,
        obs_shape: Sequence[int],
        prop_shape: Sequence[int],
        action_dim: int,
        rl_camera: str,
        cfg: QAgentConfig,
        *,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self._shapes = (use_state, tuple(obs_shape), tuple(prop_shape), action_dim, rl_camera)
        self.use_state = bool(use_state)
        self.rl_camera = rl_camera
        self.cfg = cfg
        self.action_dim = action_dim
        self.device = torch.device(resolve_device(cfg.device))
        self.act_method: str = cfg.act_method
        self.bootstrap_method = cfg.bootstrap_method or cfg.act_method

        if cfg.norm_state and not self.use_state:
            raise ConfigError("norm_state: 1 normalises states, but this agent sees pixels")
        if cfg.use_prop and not self.use_state and sum(prop_shape) < 1:
            raise ConfigError(f"use_prop: 1, but there is no proprioception: {tuple(prop_shape)}")

        self.critic: Critic | MultiFcQ
        self.actor: Actor | FcActor
        if self.use_state:
            self.critic = MultiFcQ(tuple(obs_shape), action_dim, cfg.state_critic)
            self.actor = FcActor(tuple(obs_shape), action_dim, cfg.state_actor)
            if cfg.norm_state:
                self.state_norm = Normalizer(obs_shape[0])
        else:
            self.encoder = _ENCODERS[cfg.enc_type](tuple(obs_shape), cfg)
            prop_dim = prop_shape[0] if cfg.use_prop else 0
            dims = (self.encoder.repr_dim, self.encoder.patch_repr_dim, prop_dim, action_dim)
            self.critic = Critic(*dims, cfg.critic)
            self.actor = Actor(*dims, cfg.actor)
            self.aug = RandomShiftsAug(pad=4)
        self.critic_target = copy.deepcopy(self.critic).requires_grad_(False)
        self.actor_target = copy.deepcopy(self.actor).requires_grad_(False)
        self.to(self.device)
        # (of the net, of its target): collecting them anew takes longer than some kernels
        self._critic_params = list(self.critic.parameters()), list(self.critic_target.parameters())
        self._actor_params = list(self.actor.parameters()), list(self.actor_target.parameters())

        self.encoder_opt = None if self.use_state else Adam(self.encoder.parameters(), cfg.lr)
        self.critic_opt = Adam(self.critic.parameters(), cfg.lr)
        self.actor_opt = Adam(self.actor.parameters(), cfg.lr)

        # Kept out of nn.Module's registry: they are not part of this agent's checkpoint.
        self.bc_policies: list[Policy] = []
        self.rng = torch.Generator(self.device).manual_seed(seed)
        self.host_rng = torch.Generator().manual_seed(seed + 1)
        # Evaluation draws from its own generators, so that it never disturbs training.
        self._eval_rng = torch.Generator(self.device).manual_seed(seed + 2)
        self._eval_host_rng = torch.Generator().manual_seed(seed + 3)
        self.stats: Any = None
        self._switched: list[nn.Module] = []  # all but the targets, once known
        self.train()

    # ------------------------------------------------------------------ set-up

    @property
    def input_keys(self) -> list[str]:
        """The observations it reads, and so what a replay must hold."""
        if self.use_state:
            return ["state"]
        return [self.rl_camera] + (["prop"] if self.cfg.use_prop else [])

    @property
    def num_bc_action(self) -> int:
        """K, the BC candidates per observation; 0 without a BC policy."""
        return len(self.bc_policies) * self.cfg.num_bc_samples

    def fit_state_norm(self, states: torch.Tensor) -> None:
        """Take mean and std of demonstration states [N, S] (``norm_state = 1``)."""
        if not self.cfg.norm_state:
            raise RuntimeError("fit_state_norm: q_agent.norm_state is 0")
        self.state_norm.fit(states.to(self.device))

    @property
    def stochastic_eval(self) -> bool:
        """Whether ``act(eval_mode=True)`` draws random numbers.

        So do a soft choice, a random subset of the critics, and BC policies that sample.
        """
        if self.act_method == "rl":
            return False
        subset = self.use_state and self._subset_size() < self.cfg.state_critic.num_q
        samples = any(p.stochastic_eval for p in self.bc_policies)
        return self.act_method == "ibrl_soft" or subset or samples

    def add_bc_policy(self, policy: Policy) -> None:
        """Attach a BC policy (frozen, eval mode); several may be attached."""
        if not isinstance(policy, nn.Module):
            raise TypeError(f"BC policy must be an nn.Module, got {type(policy).__name__}")
        policy.to(self.device).eval().requires_grad_(False)
        self.bc_policies.append(policy)

    def set_stats(self, stats: Any) -> None:
        """Give the agent a meter (``append(key, value)``) for what it does while acting."""
        self.stats = stats

    def train(self, mode: bool = True) -> QAgent:
        """Switch encoder, actor and critic. The targets keep their modes: the critic's is
        always eval; the actor's always train, so bootstrap actions see dropout (as released).
        """
        if not self._switched:
            super().train(mode)
            self.critic_target.eval()
            self.actor_target.train()
            targets = {*self.critic_target.modules(), *self.actor_target.modules()}
            self._switched = [m for m in self.modules() if m not in targets]
        for m in self._switched:  # every step, around acting: past nn.Module's slow __setattr__
            m.__dict__["training"] = mode
        return self

    @contextmanager
    def override_act_method(self, method: str) -> Iterator[None]:
        """Act by another method inside the block (a soft agent's greedy evaluation)."""
        check_choice("act_method", method, ACT_METHODS)
        before, self.act_method = self.act_method, method
        try:
            yield
        finally:
            self.act_method = before

    # ------------------------------------------------------------------ acting

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
        """Action for an observation dict (the caller's dict is left alone).

        Args:
            obs: unbatched (or batched) tensors; a cached ``bc_action`` [K, A] is used if present.
            eval_mode: deterministic RL action (mean) instead of a noisy sample.
            stddev: exploration noise of the sample.
            cpu: return on the CPU.
            generator: CPU generator for this call; None: the agent's own.

        Returns:
            float32 [A], or [B, A] for a batched observation.
        """
        if self.training:
            raise RuntimeError("QAgent.act: the agent is in train mode; call agent.eval() first")
        obs, batched = self._to_batched(obs)
        feats = self._features(obs, augment=False)
        rng = self._on_device(generator) or (self._eval_rng if eval_mode else self.rng)
        if self.act_method == "rl":
            action = self._act_rl(feats, eval_mode, stddev, rng)
        else:
            host_rng = generator or (self._eval_host_rng if eval_mode else self.host_rng)
            action = self._act_ibrl(obs, feats, eval_mode, stddev, rng, host_rng)
        if not batched:
            action = action.squeeze(0)
        return action.cpu() if cpu else action

    def _act_rl(
        self, feats: Obs, eval_mode: bool, stddev: float, rng: torch.Generator | None
    ) -> torch.Tensor:
        dist = self.actor(feats, stddev)
        return dist.mean if eval_mode else dist.sample(clip=None, generator=rng)

    def _act_ibrl(
        self,
        obs: Obs,
        feats: Obs,
        eval_mode: bool,
        stddev: float,
        rng: torch.Generator | None,
        host_rng: torch.Generator | None,
    ) -> torch.Tensor:
        """Actor proposal (paper eq. 2): the better of the RL and the BC actions."""
        rl_action = self._act_rl(feats, eval_mode, stddev, rng)
        candidates = self._candidates(rl_action, obs, obs.get(BC_ACTION), rng)
        q = self._target_q_candidates(feats, candidates, self._draw_members(host_rng))
        soft = self.act_method == "ibrl_soft"
        eps = 1.0 if eval_mode or soft else self.cfg.ibrl_eps_greedy
        action, index = select_candidate(
            candidates,
            q,
            soft_beta=self.cfg.soft_ibrl_beta if soft else None,
            eps_greedy=eps,
            generator=rng,
        )
        self._record_act(candidates, q, index, eval_mode, soft, eps)
        return action

    def _record_act(
        self,
        candidates: torch.Tensor,
        q: torch.Tensor,
        index: torch.Tensor,
        eval_mode: bool,
        soft: bool,
        eps: float,
    ) -> None:
        if self.stats is None:
            return
        chose_bc = (index > 0).float().mean()
        self.stats.append("actor/bc_eval" if eval_mode else "actor/bc_train", chose_bc)
        if eval_mode:
            return
        self.stats.append("actor/anorm_rl", candidates[:, 0, :6].norm(dim=-1).mean())
        self.stats.append("actor/anorm_bc", candidates[:, 1, :6].norm(dim=-1).mean())
        if eps < 1.0:
            self.stats.append("actor/greedy", (index == q.argmax(1)).float().mean())
        if soft:
            p = torch.softmax(q * self.cfg.soft_ibrl_beta, dim=1)
            self.stats.append("actor/p_max", p.max(dim=1).values.mean())
            self.stats.append("actor/bc_act", chose_bc)
            self.stats.append("actor/qrl-qbc", (q[:, 0] - q[:, 1:].max(dim=1).values).mean())

    @torch.no_grad()
    def propose_bc(self, obs: Obs, generator: torch.Generator | None = None) -> torch.Tensor:
        """All BC candidates for a batched observation: float32 [B, K, A].

        K = len(bc_policies) * num_bc_samples. What the replay stores as ``bc_action``.
        Policies that sample (implicit ones) draw from ``generator``, default the agent's own.
        """
        if not self.bc_policies:
            raise RuntimeError(
                f"act_method '{self.act_method}' / bootstrap_method '{self.bootstrap_method}' "
                "needs a BC policy: attach one with add_bc_policy (config field bc_policy)"
            )
        num, rng = self.cfg.num_bc_samples, self.rng if generator is None else generator
        proposals = [p.propose(obs, num, generator=rng) for p in self.bc_policies]
        return torch.cat(proposals, dim=1)

    def _candidates(
        self,
        rl_action: torch.Tensor,
        obs: Obs,
        bc_action: torch.Tensor | None,
        rng: torch.Generator | None = None,
    ) -> torch.Tensor:
        """[B, 1 + K, A], column 0 the RL action."""
        if bc_action is None:
            bc_action = self.propose_bc(obs, rng)
        return torch.cat([rl_action.unsqueeze(1), bc_action], dim=1)

    def _on_device(self, generator: torch.Generator | None) -> torch.Generator | None:
        """The caller's CPU generator, or one on the agent's device seeded from it."""
        return None if generator is None else generator_on(self.device, generator)

    def _to_batched(self, obs: Mapping[str, torch.Tensor]) -> tuple[Obs, bool]:
        key = "state" if self.use_state else self.rl_camera
        if key not in obs:
            raise KeyError(f"observation '{key}' is missing; the observation has {sorted(obs)}")
        batched = obs[key].dim() == (2 if self.use_state else 4)
        out = {k: v.to(self.device) for k, v in obs.items()}
        return (out if batched else {k: v.unsqueeze(0) for k, v in out.items()}), batched

    # -------------------------------------------------------------- features, Q

    def _features(self, obs: Obs, augment: bool) -> Obs:
        """What actor and critic see: {"state"} or {"feat" [B, patches, dim], "prop"}."""
        if self.use_state:
            state = obs["state"].float()
            return {"state": self.state_norm(state) if self.cfg.norm_state else state}
        image = obs[self.rl_camera]
        image = self.aug(image) if augment else image
        feats = {"feat": self.encoder(image, flatten=False)}
        if self.cfg.use_prop:
            feats["prop"] = obs["prop"].float()
        return feats

    def _subset_size(self) -> int:
        return self.cfg.state_critic.num_k

    def _draw_members(self, rng: torch.Generator | None) -> list[int] | None:
        """The random subset of the ensemble (REDQ): num_k of num_q, without replacement."""
        if not self.use_state:
            return None
        num_q, num_k = self.cfg.state_critic.num_q, self._subset_size()
        if num_k >= num_q:
            return list(range(num_q))
        return sorted(torch.randperm(num_q, generator=rng)[:num_k].tolist())

    def _target_q_candidates(
        self, feats: Obs, actions: torch.Tensor, members: Sequence[int] | None
    ) -> torch.Tensor:
        """min over the target critic's (drawn) members for actions [B, N, A] -> [B, N]."""
        return self._q_members(self.critic_target, feats, actions, members).min(dim=-1).values

    def _q_members(
        self,
        critic: Critic | MultiFcQ,
        feats: Obs,
        actions: torch.Tensor,
        members: Sequence[int] | None,
    ) -> torch.Tensor:
        """[B, N, A] -> [B, N, M]: every (drawn) member's value of every candidate."""
        if isinstance(critic, MultiFcQ):
            return critic.q_candidates(feats["state"], actions, members)
        return critic.q_candidates(feats["feat"], feats.get("prop"), actions)

    def _q_all(self, feats: Obs, action: torch.Tensor) -> torch.Tensor:
        """Online critic, all members: [B, A] -> [B, M]."""
        if isinstance(self.critic, MultiFcQ):
            return self.critic(feats["state"], action)
        return torch.stack(self.critic(feats["feat"], feats.get("prop"), action), dim=-1)

    def _q_min(self, feats: Obs, action: torch.Tensor) -> torch.Tensor:
        """Online critic, smallest member: [B, A] -> [B]."""
        if isinstance(self.critic, MultiFcQ):
            return self.critic.min_q(feats["state"], action)
        return self._q_all(feats, action).min(dim=-1).values

    # ------------------------------------------------------------------ updates

    def update(
        self,
        batch: Batch,
        stddev: float,
        update_actor: bool,
        bc_batch: Batch | None = None,
        ref_agent: QAgent | None = None,
    ) -> dict[str, torch.Tensor]:
        """One critic step, and one actor step if asked; returns detached scalar metrics.

        Args:
            batch: transitions (see ``common_utils.specs.Batch``) on the agent's device.
            stddev: noise of the bootstrap action and the actor's sample.
            bc_batch: demonstrations, for the BC regulariser (RFT).
            ref_agent: the frozen pretrained agent, for its dynamic weight.
        """
        feats = self._features(batch.obs, augment=True)
        with torch.no_grad():
            next_feats = self._features(batch.next_obs, augment=True)
            target_q, metrics = self.compute_target_q(batch, next_feats, stddev)
        metrics["data/batch_R"] = batch.reward.mean()
        metrics["data/discount"] = batch.bootstrap.mean()
        metrics |= self.update_critic(feats, batch.action, target_q)
        soft_update_params(*self._critic_params, self.cfg.critic_target_tau)
        if update_actor:
            # The features as they were before the encoder's step.
            feats = {k: v.detach() for k, v in feats.items()}
            metrics |= self.update_actor(feats, stddev, bc_batch, ref_agent)
            soft_update_params(*self._actor_params, self.cfg.critic_target_tau)
        return metrics

    @torch.no_grad()
    def compute_target_q(
        self, batch: Batch, next_feats: Obs, stddev: float
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """TD target [B]: n-step reward + bootstrap * Q'(s', a'), a' by bootstrap_method (eq. 3)."""
        dist = self.actor_target(next_feats, stddev)
        rl_action = dist.sample(clip=self.cfg.stddev_clip, generator=self.rng)
        metrics: dict[str, torch.Tensor] = {}
        members = self._draw_members(self.host_rng)
        if self.bootstrap_method == "rl":
            q = self._target_q_candidates(next_feats, rl_action.unsqueeze(1), members).squeeze(1)
        else:
            candidates = self._candidates(rl_action, batch.next_obs, batch.next_bc_action)
            q, index = self._bootstrap_ibrl(next_feats, candidates, members)
            metrics["actor/bootstrap_bc"] = (index > 0).float().mean()
        target_q = torch.addcmul(batch.reward, batch.bootstrap, q)
        metrics["train/critic_qt"] = target_q.mean()
        return target_q, metrics

    def _bootstrap_ibrl(
        self, feats: Obs, candidates: torch.Tensor, members: list[int] | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Choose among candidates with one subset, value the choice with another (REDQ).

        Pixels have one pair of Q-heads for both. Values already computed are reused: only
        members of the second subset that are not in the first are evaluated, and only for
        the chosen action.
        """
        q = self._q_members(self.critic_target, feats, candidates, members)
        soft = self.cfg.soft_ibrl_beta if self.bootstrap_method == "ibrl_soft" else None
        action, index = select_candidate(
            candidates, q.min(dim=-1).values, soft_beta=soft, generator=self.rng
        )
        chosen = take(q, index)
        if members is None:
            return chosen.min(dim=-1).values, index
        second = self._draw_members(self.host_rng) or []
        known = [members.index(m) for m in second if m in members]
        fresh = [m for m in second if m not in members]
        parts = [chosen[:, known]] if known else []
        if fresh:
            parts.append(
                self._q_members(self.critic_target, feats, action.unsqueeze(1), fresh).squeeze(1)
            )
        return torch.cat(parts, dim=-1).min(dim=-1).values, index

    def update_critic(
        self, feats: Obs, action: torch.Tensor, target_q: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """One step on the squared TD error, summed over the ensemble, averaged over the batch."""
        q = self._q_all(feats, action)
        loss = (q - target_q.unsqueeze(-1)).square().sum(dim=-1).mean()
        self.critic_opt.zero_grad(set_to_none=True)
        if self.encoder_opt is not None:
            self.encoder_opt.zero_grad(set_to_none=True)
        loss.backward()
        if self.encoder_opt is not None:
            self.encoder_opt.step()
        self.critic_opt.step()
        return {"train/critic_loss": loss.detach()}

    def update_actor(
        self,
        feats: Obs,
        stddev: float,
        bc_batch: Batch | None = None,
        ref_agent: QAgent | None = None,
    ) -> dict[str, torch.Tensor]:
        """One step on -min Q(s, pi(s)); with ``bc_batch`` plus the BC regulariser (RFT)."""
        action = self.actor(feats, stddev).sample(clip=self.cfg.stddev_clip, generator=self.rng)
        with _frozen(self._critic_params[0]):  # no gradients for weights that this step won't touch
            actor_loss = -self._q_min(feats, action).mean()
        metrics = {"train/actor_loss": actor_loss.detach()}
        loss = actor_loss
        if bc_batch is not None:
            with torch.no_grad():
                bc_feats = self._features(bc_batch.obs, augment=True)
            bc_loss = self._bc_loss(bc_feats, bc_batch.action)
            ratio = bc_loss.new_ones(())
            if self.cfg.bc_loss_dynamic:
                if ref_agent is None:
                    raise ValueError("bc_loss_dynamic = 1 needs a reference agent")
                ratio = self._bc_ratio(bc_batch.obs, ref_agent)
            loss = actor_loss + self.cfg.bc_loss_coef * ratio * bc_loss
            metrics |= {"rft/ratio": ratio, "rft/bc_loss": bc_loss.detach()}
        self.actor_opt.zero_grad(set_to_none=True)
        loss.backward()
        self.actor_opt.step()
        return metrics

    def _bc_loss(self, feats: Obs, action: torch.Tensor) -> torch.Tensor:
        """Squared error of the actor's mean: summed over action dims, averaged over the batch."""
        pred = self.actor(feats, 0.0).sample(clip=None, generator=self.rng)
        return (pred - action).square().sum(dim=-1).mean()

    @torch.no_grad()
    def _bc_ratio(self, obs: Obs, ref_agent: QAgent) -> torch.Tensor:
        """Fraction of demonstration states where the reference agent's action is valued higher."""
        with eval_mode_of(self, ref_agent):
            feats = self._features(obs, augment=False)
            ref_action = ref_agent.actor(ref_agent._features(obs, augment=False), 0.0).mean
            action = self.actor(feats, 0.0).mean
            q = []
            for a in (ref_action, action):  # two different subsets, as released
                members = self._draw_members(self.host_rng)
                q_a = self._q_members(self.critic, feats, a.unsqueeze(1), members)
                q.append(q_a.min(dim=-1).values)
        return (q[0] > q[1]).float().mean()

    def pretrain_actor_with_bc(self, batch: Batch) -> dict[str, torch.Tensor]:
        """One BC step on encoder and actor (RFT's first phase). Targets are not touched."""
        loss = self._bc_loss(self._features(batch.obs, augment=True), batch.action)
        self.actor_opt.zero_grad(set_to_none=True)
        if self.encoder_opt is not None:
            self.encoder_opt.zero_grad(set_to_none=True)
        loss.backward()
        if self.encoder_opt is not None:
            self.encoder_opt.step()
        self.actor_opt.step()
        return {"pretrain/loss": loss.detach()}

    def finish_pretraining(self) -> None:
        """Called once after BC pretraining; see ``QAgentConfig.sync_actor_target``."""
        if self.cfg.sync_actor_target:
            self.actor_target.load_state_dict(self.actor.state_dict())

    def reference_copy(self) -> QAgent:
        """A frozen copy that acts by its own actor (RFT's reference agent)."""
        cfg = replace(self.cfg, act_method="rl", bootstrap_method="rl")
        with torch.random.fork_rng(devices=[]):  # its initialisation is overwritten at once
            ref = QAgent(*self._shapes, cfg)
        ref.load_state_dict(self.state_dict())
        return ref.requires_grad_(False)

    # ------------------------------------------------------------------- resume

    def _optimizers(self) -> dict[str, torch.optim.Optimizer]:
        opts: dict[str, torch.optim.Optimizer]
        opts = {"critic": self.critic_opt, "actor": self.actor_opt}
        return opts | ({"encoder": self.encoder_opt} if self.encoder_opt is not None else {})

    def training_state(self) -> dict[str, Any]:
        """Everything exact resume needs: weights, targets, optimisers, generators."""
        return {
            "model": self.state_dict(),
            "optimizers": {k: o.state_dict() for k, o in self._optimizers().items()},
            "rng": self.rng.get_state(),
            "host_rng": self.host_rng.get_state(),
            "eval_rng": self._eval_rng.get_state(),
            "eval_host_rng": self._eval_host_rng.get_state(),
        }

    def load_training_state(self, state: Mapping[str, Any]) -> None:
        """Inverse of :meth:`training_state`."""
        self.load_state_dict(state["model"])
        for name, opt in self._optimizers().items():
            opt.load_state_dict(state["optimizers"][name])
        self.rng.set_state(state["rng"].cpu())
        self.host_rng.set_state(state["host_rng"].cpu())
        self._eval_rng.set_state(state["eval_rng"].cpu())
        self._eval_host_rng.set_state(state["eval_host_rng"].cpu())


_ENCODERS: dict[str, Callable[[tuple[int, ...], QAgentConfig], Any]] = {
    "vit": lambda shape, cfg: VitEncoder(shape, cfg.vit),
    "resnet": lambda shape, cfg: ResNetEncoder(shape, cfg.resnet),
    "resnet96": lambda shape, cfg: ResNet96Encoder(shape, cfg.resnet96),
    "drq": lambda shape, cfg: DrQEncoder(shape),
}


@contextmanager
def _frozen(params: Sequence[torch.Tensor]) -> Iterator[None]:
    """No gradients for these parameters inside the block."""
    for p in params:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in params:
            p.requires_grad_(True)
