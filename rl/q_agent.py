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
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import torch
from torch import nn

from common_utils.ibrl_utils import frozen
from common_utils.specs import BC_ACTION, Batch, Obs
from networks.graphs import compiled
from networks.optim import Adam, descend, soft_update_params
from networks.precision import products
from rl import rft
from rl.agent import AgentInputs, EvalVariant, Networks
from rl.critic import Members
from rl.draws import DRAWN_LATER, ActDraws, UpdateDraws
from rl.heads import HEADS, Head
from rl.q_agent_config import ACT_METHODS, QAgentConfig, check_choice
from rl.selection import act_metrics, draw_choice, select_candidate, take


class _Acting(NamedTuple):
    """How one call of ``act`` explores, and its source of random numbers."""

    eval_mode: bool
    stddev: float | torch.Tensor
    # None in a graph, where ``draws`` has all numbers
    rng: torch.Generator | None
    host_rng: torch.Generator | None
    draws: ActDraws = ActDraws()


class QAgent(rft.Regularised):
    """Actor-critic over pixels (encoder, two Q-heads) or states (REDQ ensemble).

    Args:
        use_state: states (1) or pixels (0).
        obs_shape: [S] for states, [C, H, W] of the camera for pixels.
        prop_shape: [P]; used by pixel agents when ``cfg.use_prop``.
        action_dim: A.
        rl_camera: key of the image in the observation dict.
        cfg: QAgentConfig.
        seed: seed of the agent's own generators (exploration noise, subsets; not augmentation).

    ``state_dict`` holds encoder (pixels), critic, actor and the two targets under the
    official names; BC policies and optimisers are not part of it.
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
        super().__init__(cfg.device, cfg.num_bc_samples, seed)
        self._shapes = (use_state, tuple(obs_shape), tuple(prop_shape), action_dim, rl_camera)
        self.use_state, self.rl_camera = bool(use_state), rl_camera
        self.cfg = cfg
        self.action_dim = action_dim
        self.act_method: str = cfg.act_method
        self.bootstrap_method = cfg.bootstrap_method or cfg.act_method

        kind = HEADS["state" if self.use_state else "pixel"]
        self.head: Head = kind(obs_shape, prop_shape, action_dim, rl_camera, cfg)
        for name, part in self.head.parts().items():
            self.add_module(name, part)
        self.critic_target = copy.deepcopy(self.critic).requires_grad_(False)
        self.actor_target = copy.deepcopy(self.actor).requires_grad_(False)
        self.to(self.device)
        # (the net's, its target's): collecting them each time takes longer than some kernels
        self._critic_params = list(self.critic.parameters()), list(self.critic_target.parameters())
        self._actor_params = list(self.actor.parameters()), list(self.actor_target.parameters())

        encoder = self.head.parts().get("encoder")
        self.encoder_opt = None if encoder is None else Adam(encoder.parameters(), cfg.lr)
        self.critic_opt = Adam(self.critic.parameters(), cfg.lr)
        self.actor_opt = Adam(self.actor.parameters(), cfg.lr)

        self._switched: list[nn.Module] = []  # all but the targets, once known
        self.train()
        # functions of the agent and tensors, as graphs if asked
        graph = partial(compiled, how=cfg.compile, field="q_agent.compile")
        self._run_update, self._run_decide = graph(QAgent._update), graph(QAgent._decide)
        self._run_pretrain = graph(QAgent._pretrain)

    @classmethod
    def build(cls, inputs: AgentInputs, cfg: QAgentConfig) -> QAgent:
        """Build the agent, for ``rl.registry``."""
        return cls(not inputs.camera, *inputs.seen, cfg, seed=inputs.seed)

    @staticmethod
    def networks(inputs: AgentInputs, cfg: QAgentConfig) -> Networks:
        """Encoder (pixels), critic and actor, to estimate their memory before building an agent."""
        kind = HEADS["pixel" if inputs.camera else "state"]
        return Networks(kind(*inputs.seen, cfg).parts(), ("critic", "actor"))

    @property
    def input_keys(self) -> list[str]:
        """The observations it reads, which a replay must hold."""
        return self.head.input_keys

    def fit(self, observations: Iterable[Obs]) -> None:
        """With ``norm_state`` 1, take mean and std of the demonstrations' states."""
        if self.cfg.norm_state:
            states = torch.cat([obs["state"] for obs in observations]).to(self.device)
            self.get_submodule("state_norm").fit(states)  # type: ignore[operator]

    def policy_of(self, weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """``weights``, with this agent's own critics."""
        own = {k: v for k, v in self.state_dict().items() if k.startswith("critic.")}
        targets = {k.replace("critic.", "critic_target.", 1): v for k, v in own.items()}
        return {**weights, **own, **targets}

    @property
    def stochastic_eval(self) -> bool:
        """Whether ``act(eval_mode=True)`` draws random numbers.

        A soft choice, a random subset of the critics, and BC policies that sample do so.
        """
        if self.act_method == "rl":
            return False
        sampled = any(p.stochastic_eval for p in self.bc_policies)
        return self.act_method == "ibrl_soft" or self.critic.draws_subset or sampled

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

    def eval_variants(self) -> list[EvalVariant]:
        """A soft agent is also evaluated with greedy choices."""
        if self.act_method != "ibrl_soft":
            return []
        greedy = self.override_act_method("ibrl")
        return [EvalVariant("score/greedy_score", "score_diff/greedy-soft", greedy)]

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
        """Action for an observation dict (the caller's dict is not changed).

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
        obs, batched = self._to_batched(obs, self.head.batched_dim)
        rng = self._on_device(generator) or (self._eval_rng if eval_mode else self.rng)
        host_rng = generator or (self._eval_host_rng if eval_mode else self.host_rng)
        how = _Acting(eval_mode, stddev, rng, host_rng)
        if self.cfg.compile != "off":
            obs, how = self._drawn_before(obs, stddev, how)
        with products(self.cfg.precision, self.device):
            action, metrics = self._run_decide(self, obs, how, self.stats is not None)
        self._append_stats(metrics)
        if not batched:
            action = action.squeeze(0)
        return action.cpu() if cpu else action

    def _drawn_before(self, obs: Obs, stddev: float, how: _Acting) -> tuple[Obs, _Acting]:
        """All that a graph needs to act: proposals and random numbers as tensors."""
        rows = len(obs[self.input_keys[0]])
        noise = None if how.eval_mode else self._normal(rows, how.rng)
        members = choice = None
        if self.act_method != "rl":
            if BC_ACTION not in obs:
                obs = {**obs, BC_ACTION: self.propose(obs, how.rng)}
            members = self._draw_members(how.host_rng)
            values = torch.empty(rows, 1 + obs[BC_ACTION].size(1), device=self.device)
            choice = draw_choice(values, generator=how.rng, **self._rule(how.eval_mode))
        draws = ActDraws(noise, members, choice)
        return obs, _Acting(how.eval_mode, self._scalar(stddev), None, None, draws)

    def _decide(
        self, obs: Obs, how: _Acting, measured: bool
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The actions [B, A] for observations, and their metrics if ``measured``."""
        feats = self.features(obs, augment=False)
        rl_action = self._act_rl(feats, how)
        if self.act_method == "rl":
            return rl_action, {}
        candidates = self._candidates(rl_action, obs, obs.get(BC_ACTION), how.rng)
        members = self._members(how.draws.members, how.host_rng)
        q, rule = self._target_q(feats, candidates, members), self._rule(how.eval_mode)
        action, index = select_candidate(
            candidates, q, generator=how.rng, draws=how.draws.choice, **rule
        )
        if not measured:
            return action, {}
        return action, act_metrics(candidates, q, index, how.eval_mode, **rule)

    def _act_rl(self, feats: Obs, how: _Acting) -> torch.Tensor:
        dist = self.actor(feats, how.stddev)
        return dist.mean if how.eval_mode else dist.sample(None, how.rng, how.draws.noise)

    def _rule(self, eval_mode: bool) -> dict[str, float]:
        """How ``act`` chooses. ibrl: the actor proposal (paper eq. 2), the better of the RL and
        the BC actions; ibrl_soft: one drawn with probability softmax(beta Q'(s, a)).
        """
        if self.act_method == "ibrl_soft":
            return {"soft_beta": self.cfg.soft_ibrl_beta}
        return {"eps_greedy": 1.0 if eval_mode else self.cfg.ibrl_eps_greedy}

    def _candidates(
        self,
        rl_action: torch.Tensor,
        obs: Obs,
        bc_action: torch.Tensor | None,
        rng: torch.Generator | None = None,
    ) -> torch.Tensor:
        """[B, 1 + K, A], column 0 the RL action."""
        if bc_action is None:
            bc_action = self.propose(obs, rng)
        return torch.cat([rl_action.unsqueeze(1), bc_action], dim=1)

    # -------------------------------------------------------------- features, Q

    def features(self, obs: Obs, augment: bool, shifts: torch.Tensor | None = None) -> Obs:
        """The input of actor and critic: {"state"} or {"feat" [B, patches, dim], "prop"}."""
        return self.head.features(obs, augment, shifts)

    def _target_q(self, feats: Obs, actions: torch.Tensor, members: Members) -> torch.Tensor:
        """min over the target critic's (drawn) members for actions [B, N, A] -> [B, N]."""
        return self.critic_target.q(feats, actions, members).min(dim=-1).values

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
        scale: float | torch.Tensor = stddev
        draws = DRAWN_LATER
        if self.cfg.compile != "off":
            self._prepare_optimizers()
            batch, draws = self._draw_update(batch, update_actor, bc_batch)
            scale = self._scalar(stddev)
        with products(self.cfg.precision, self.device):
            return self._run_update(self, batch, scale, update_actor, bc_batch, ref_agent, draws)

    def _draw_update(
        self, batch: Batch, update_actor: bool, bc_batch: Batch | None
    ) -> tuple[Batch, UpdateDraws]:
        """The batch with proposals if needed, and every random number of an update with it."""
        rows, rng, method = len(batch.action), self.rng, self.bootstrap_method
        shifts, next_shifts = (self.head.draw_shifts(rows, self.device) for _ in range(2))
        noise, first = self._normal(rows, rng), self._draw_members(self.host_rng)
        second = choice = None
        if method != "rl":
            if batch.next_bc_action is None:
                batch = replace(batch, next_bc_action=self.propose(batch.next_obs))
            values = torch.empty(rows, 1 + self.num_bc_action, device=self.device)
            choice = draw_choice(values, soft_beta=self._soft_bootstrap, generator=rng)
            second = self._draw_members(self.host_rng)
        draws = UpdateDraws(shifts, next_shifts, noise, first, second, choice)
        if update_actor:
            draws = draws._replace(actor_noise=self._normal(rows, rng))
        if update_actor and bc_batch is not None:
            draws = self._draw_bc(bc_batch, draws)
            if self.cfg.bc_loss_dynamic:
                members = self._draw_members(self.host_rng), self._draw_members(self.host_rng)
                draws = draws._replace(ratio_members=members)
        return batch, draws

    def _draw_bc(self, bc_batch: Batch, draws: UpdateDraws) -> UpdateDraws:
        """``draws`` with those of the BC loss."""
        rows = len(bc_batch.action)
        shifts = self.head.draw_shifts(rows, self.device)
        return draws._replace(bc_shifts=shifts, bc_noise=self._normal(rows, self.rng))

    def _normal(self, rows: int, rng: torch.Generator | None) -> torch.Tensor:
        return torch.randn(rows, self.action_dim, generator=rng, device=self.device)

    def _scalar(self, value: float) -> torch.Tensor:
        """A number as a tensor, so that a graph holds for all of its values."""
        return torch.full((), value, device=self.device)

    def _draw_members(self, rng: torch.Generator | None) -> torch.Tensor | None:
        """Members of a random subset as an index int64 [K]; None if there is nothing to draw."""
        if not self.critic_target.draws_subset:
            return None
        return torch.tensor(self.critic_target.draw_members(rng)).to(self.device)

    def _members(self, drawn: torch.Tensor | None, rng: torch.Generator | None) -> Members:
        return self.critic_target.draw_members(rng) if drawn is None else drawn

    def _update(
        self,
        batch: Batch,
        stddev: float | torch.Tensor,
        update_actor: bool,
        bc_batch: Batch | None,
        ref_agent: QAgent | None,
        draws: UpdateDraws,
    ) -> dict[str, torch.Tensor]:
        """:meth:`update`, a function of tensors if all is drawn before."""
        feats = self.features(batch.obs, True, draws.shifts)
        with torch.no_grad():
            next_feats = self.features(batch.next_obs, True, draws.next_shifts)
            target_q, metrics = self.compute_target_q(batch, next_feats, stddev, draws)
        metrics["data/batch_R"] = batch.reward.mean()
        metrics["data/discount"] = batch.bootstrap.mean()
        metrics |= self.update_critic(feats, batch.action, target_q)
        if update_actor:
            # The features as they were before the encoder's step.
            feats = {k: v.detach() for k, v in feats.items()}
            if bc_batch is None:
                metrics |= self.update_actor(feats, stddev, draws)
            else:
                metrics |= self.update_actor_rft(feats, stddev, bc_batch, ref_agent, draws)
            soft_update_params(*self._actor_params, self.cfg.critic_target_tau)
        return metrics

    @torch.no_grad()
    def compute_target_q(
        self,
        batch: Batch,
        next_feats: Obs,
        stddev: float | torch.Tensor,
        draws: UpdateDraws = DRAWN_LATER,
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """TD target [B]: n-step reward + bootstrap * Q'(s', a'), a' by bootstrap_method (eq. 3)."""
        dist = self.actor_target(next_feats, stddev)
        rl_action = dist.sample(self.cfg.stddev_clip, self.rng, draws.noise)
        metrics: dict[str, torch.Tensor] = {}
        members = self._members(draws.members, self.host_rng)
        if self.bootstrap_method == "rl":
            q = self._target_q(next_feats, rl_action.unsqueeze(1), members).squeeze(1)
        else:
            candidates = self._candidates(rl_action, batch.next_obs, batch.next_bc_action)
            q, index = self._bootstrap_ibrl(next_feats, candidates, members, draws)
            metrics["actor/bootstrap_bc"] = (index > 0).float().mean()
        target_q = torch.addcmul(batch.reward, batch.bootstrap, q)
        metrics["train/critic_qt"] = target_q.mean()
        return target_q, metrics

    @property
    def _soft_bootstrap(self) -> float | None:
        return self.cfg.soft_ibrl_beta if self.bootstrap_method == "ibrl_soft" else None

    def _bootstrap_ibrl(
        self, feats: Obs, candidates: torch.Tensor, members: Members, draws: UpdateDraws
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Choose among candidates with one subset, value the choice with another (REDQ).

        Values already computed are reused if the host knows the members: only those of the second
        subset that are not in the first are evaluated, and only for the chosen action.
        """
        q = self.critic_target.q(feats, candidates, members)
        action, index = select_candidate(
            candidates,
            q.min(dim=-1).values,
            soft_beta=self._soft_bootstrap,
            generator=self.rng,
            draws=draws.choice,
        )
        second = self._members(draws.second, self.host_rng)
        if isinstance(second, torch.Tensor) or isinstance(members, torch.Tensor):
            chosen = self._target_q(feats, action.unsqueeze(1), second)
            return chosen.squeeze(1), index
        assert second is not None and members is not None  # drawn by the host
        known = [members.index(m) for m in second if m in members]
        fresh = [m for m in second if m not in members]
        parts = [take(q, index)[:, known]] if known else []
        if fresh:
            parts.append(self.critic_target.q(feats, action.unsqueeze(1), fresh).squeeze(1))
        return torch.cat(parts, dim=-1).min(dim=-1).values, index

    def update_critic(
        self, feats: Obs, action: torch.Tensor, target_q: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """One step on the squared TD error, summed over the ensemble, averaged over the batch.

        The target critic then follows by ``critic_target_tau``.
        """
        tau = self.cfg.critic_target_tau
        args = feats, action, target_q, self.critic_opt, self.critic_target, tau
        loss = self.critic.td_step(*args)  # small networks: all in one call
        if loss is None:
            q = self.critic(feats, action)
            loss = (q - target_q.unsqueeze(-1)).square().sum(dim=-1).mean()
            self._step(loss, self.critic_opt, self.encoder_opt)
            soft_update_params(*self._critic_params, tau)
        return {"train/critic_loss": loss.detach()}

    def update_actor(
        self, feats: Obs, stddev: float | torch.Tensor, draws: UpdateDraws = DRAWN_LATER
    ) -> dict[str, torch.Tensor]:
        """One step on -min Q(s, pi(s))."""
        loss = self._actor_loss(feats, stddev, draws)
        self._step(loss, self.actor_opt)
        return {"train/actor_loss": loss.detach()}

    def update_actor_rft(
        self,
        feats: Obs,
        stddev: float | torch.Tensor,
        bc_batch: Batch,
        ref_agent: QAgent | None = None,
        draws: UpdateDraws = DRAWN_LATER,
    ) -> dict[str, torch.Tensor]:
        """One step on -min Q(s, pi(s)) + coef * ratio * BC loss of demonstrations (RFT)."""
        actor_loss = self._actor_loss(feats, stddev, draws)
        bc_loss = rft.bc_loss(self, bc_batch, draws=draws)
        ratio = torch.ones((), device=self.device)
        if self.cfg.bc_loss_dynamic:
            if ref_agent is None:
                raise ValueError("bc_loss_dynamic = 1 needs a reference agent")
            ratio = rft.bc_ratio(self, ref_agent, bc_batch.obs, draws)
        self._step(actor_loss + self.cfg.bc_loss_coef * ratio * bc_loss, self.actor_opt)
        return {
            "train/actor_loss": actor_loss.detach(),
            "rft/bc_loss": bc_loss.detach(),
            "rft/ratio": ratio,
        }

    def _actor_loss(
        self, feats: Obs, stddev: float | torch.Tensor, draws: UpdateDraws
    ) -> torch.Tensor:
        dist = self.actor(feats, stddev)
        action = dist.sample(self.cfg.stddev_clip, self.rng, draws.actor_noise)
        with frozen(self._critic_params[0]):  # no gradients for weights that this step won't touch
            return -self.critic.min_q(feats, action).mean()

    def _step(self, loss: torch.Tensor, *opts: Adam | None) -> None:
        """Backward, and a step of these optimisers (the last first, as released)."""
        descend(loss, *[opt for opt in opts if opt is not None])

    def pretrain_actor_with_bc(self, batch: Batch) -> dict[str, torch.Tensor]:
        """One BC step on encoder and actor (RFT's first phase). Targets are not touched."""
        draws = DRAWN_LATER
        if self.cfg.compile != "off":
            self._prepare_optimizers()
            draws = self._draw_bc(batch, draws)
        with products(self.cfg.precision, self.device):
            return self._run_pretrain(self, batch, draws)

    def _pretrain(self, batch: Batch, draws: UpdateDraws) -> dict[str, torch.Tensor]:
        loss = rft.bc_loss(self, batch, train_encoder=True, draws=draws)
        self._step(loss, self.actor_opt, self.encoder_opt)
        return {"pretrain/loss": loss.detach()}

    def finish_pretraining(self) -> None:
        """Called once after BC pretraining; see ``QAgentConfig.sync_actor_target``."""
        if self.cfg.sync_actor_target:
            self.actor_target.load_state_dict(self.actor.state_dict())

    def reference_copy(self) -> QAgent:
        """A frozen copy that acts by its own actor (RFT's reference agent)."""
        # it is part of this agent's graphs
        cfg = replace(self.cfg, act_method="rl", bootstrap_method="rl", compile="off")
        with torch.random.fork_rng(devices=[]):  # its initialisation is overwritten immediately
            ref = QAgent(*self._shapes, cfg)
        ref.load_state_dict(self.state_dict())
        return ref.requires_grad_(False)

    def _prepare_optimizers(self) -> None:
        for opt in self.optimizers().values():
            opt.prepare()

    def optimizers(self) -> dict[str, Adam]:
        """The optimisers: critic, actor, and encoder for pixels."""
        opts = {"critic": self.critic_opt, "actor": self.actor_opt}
        return opts | ({"encoder": self.encoder_opt} if self.encoder_opt is not None else {})
