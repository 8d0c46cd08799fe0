"""The agent: an actor, a critic ensemble, and (for IBRL) attached BC policies.

IBRL (Hu et al. 2023; docs/reference/ibrl.md) uses the BC policy twice, and both uses are the
same rule over candidate actions (``rl.selection``):

* acting ("actor proposal", eq. 2):   a = argmax over {a_RL, a_BC} of Q'(s, a)
* TD target ("bootstrap proposal", eq. 3): max over {a_RL, a_BC} of Q'(s', a)

``act_method`` chooses the first, ``bootstrap_method`` the second (default: the same).
RLPD and RFT are this agent with ``act_method = "rl"``.

With ``horizon`` h above 1 an action is a chunk of h steps' actions, W = h * A numbers (Q-chunking;
Li et al. 2025): actor, critics and BC policies decide on chunks and value them, and a chunk is
played to its end before the next choice. h = 1 is IBRL as published.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import nn

from common_utils.ibrl_utils import frozen
from common_utils.specs import BC_ACTION, Batch, Obs, Policy, Window
from networks.exported import Graphs
from networks.graphs import compiled
from networks.optim import Adam, descend, soft_update_params
from networks.precision import products
from rl import rft
from rl.acting import ActsByValue, Decided
from rl.agent import AgentInputs, EvalVariant, Networks
from rl.critic import Members
from rl.distilled import draw, teacher
from rl.drawing import Acting
from rl.draws import DRAWN_LATER, UpdateDraws
from rl.exported import graphs_of
from rl.heads import HEADS, Head
from rl.learning import Learning
from rl.q_agent_config import ACT_METHODS, QAgentConfig, check_choice
from rl.residual import BASE, actions_of, each_row, for_each
from rl.selection import act_metrics, select_candidate, take


class QAgent(ActsByValue):
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
        super().__init__(cfg.device, cfg.num_bc_samples, seed, cfg.horizon)
        self._shapes = (use_state, tuple(obs_shape), tuple(prop_shape), action_dim, rl_camera)
        self.use_state, self.rl_camera = bool(use_state), rl_camera
        self.cfg = cfg
        self.action_dim, self.width = action_dim, action_dim * cfg.horizon
        self.window = Window(cfg.horizon, cfg.tail)
        self.act_method: str = cfg.act_method
        self.bootstrap_method = cfg.bootstrap_method or cfg.act_method

        kind = HEADS["state" if self.use_state else "pixel"]
        self.head: Head = kind(obs_shape, prop_shape, self.width, rl_camera, cfg)
        for name, part in self.head.parts().items():
            self.add_module(name, part)
        self.critic_target = copy.deepcopy(self.critic).requires_grad_(False)
        self.actor_target = copy.deepcopy(self.actor).requires_grad_(False)
        self.to(self.device)
        # (the net's, its target's): collecting them each time takes longer than some kernels
        self._critic_params = list(self.critic.parameters()), list(self.critic_target.parameters())
        self._actor_params = list(self.actor.parameters()), list(self.actor_target.parameters())

        encoder = self.head.parts().get("encoder")
        adam = partial(Adam, clip=cfg.grad_clip)
        encoder_lr, actor_lr = cfg.encoder_lr or cfg.lr, cfg.actor_lr or cfg.lr
        self.encoder_opt = None if encoder is None else adam(encoder.parameters(), encoder_lr)
        self.critic_opt = adam(self.critic.parameters(), cfg.lr)
        self.actor_opt = adam(self.actor.parameters(), actor_lr)

        self.learning = Learning(cfg.bc_lr, cfg.horizon)
        self._switched: list[nn.Module] = []  # all but the targets, once known
        self.train()
        self._set_graphs()

    def _set_graphs(self) -> None:
        """Functions of the agent and tensors, as graphs if asked."""
        how = self.cfg.compile
        graph = partial(compiled, how=how, field="q_agent.compile", device=self.device)
        self._run_update, self._run_decide = graph(QAgent._update), graph(QAgent._decide)
        self._run_pretrain = graph(QAgent._pretrain)

    def load_training_state(self, state: Mapping[str, Any]) -> None:
        """See :class:`Agent`."""
        super().load_training_state(state)
        self.learning.set_rng_states(state.get("learning", []))  # absent in older states
        self._set_graphs()  # the moments are elsewhere in memory

    @classmethod
    def build(cls, inputs: AgentInputs, cfg: QAgentConfig) -> QAgent:
        """Build the agent, for ``rl.registry``."""
        return cls(not inputs.camera, *inputs.seen, cfg, seed=inputs.seed)

    @staticmethod
    def networks(inputs: AgentInputs, cfg: QAgentConfig) -> Networks:
        """Encoder (pixels), critic and actor, to estimate their memory before building an agent."""
        kind, (obs, prop, action_dim, camera) = HEADS[inputs.kind], inputs.seen
        head = kind(obs, prop, action_dim * cfg.horizon, camera, cfg)
        return Networks(head.parts(), ("critic", "actor"))

    @property
    def input_keys(self) -> list[str]:
        """The observations it reads, which a replay must hold."""
        return list(dict.fromkeys([*self.head.input_keys, *self.learning.input_keys]))

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
    def num_own(self) -> int:
        """See :class:`Agent`."""
        return self.own_of(self.act_method)

    @property
    def num_stored(self) -> int:
        """See :class:`Agent`: proposals of policies that learn are made anew."""
        return 0 if self.learning else self.num_bc_action

    def add_bc_policy(self, policy: Policy) -> None:
        """See :class:`Agent`; with ``bc_lr`` it keeps learning."""
        super().add_bc_policy(policy)
        self.learning.add(policy)
        if self.cfg.distill:
            teacher(self.bc_policies, self.horizon)  # or why there is none

    @property
    def stochastic_eval(self) -> bool:
        """Whether ``act(eval_mode=True)`` draws random numbers.

        A soft choice, a random subset of the critics, and BC policies that sample do so.
        """
        if self.cfg.distill and self.act_method != "bc":
            return True  # its actor makes actions of noise
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

    def graphs(self) -> Graphs:
        """See :class:`Agent`."""
        return graphs_of(self)

    # ------------------------------------------------------------------ acting

    def _decide(self, obs: Obs, how: Acting, measured: bool) -> Decided:
        """The actions [B, W] for observations, and their metrics if ``measured``."""
        feats = self.features(obs, augment=False)
        feats = self._seeing(feats, obs, obs.get(BC_ACTION), how.rng)
        if not self.chooses(how.method):
            action = self._act_rl(feats, how).squeeze(1)
            self._saw_only(feats, action)
            return action, {}
        ibrl = self._act_ibrl_soft if how.method == "ibrl_soft" else self._act_ibrl
        return ibrl(obs, feats, how, measured)

    def _act_rl(self, feats: Obs, how: Acting) -> torch.Tensor:
        """The actor's candidates [B, N, W]."""
        dist = actions_of(self.actor, feats, how.stddev)
        own = dist.mean if how.eval_mode else dist.sample(None, how.rng, how.draws.noise)
        return each_row(own, feats)

    def _act_ibrl(self, obs: Obs, feats: Obs, how: Acting, measured: bool) -> Decided:
        """Actor proposal (paper eq. 2): the better of the RL and the BC actions."""
        eps = self.eps_greedy(how.eval_mode)
        return self._choose(obs, feats, how, measured, eps_greedy=eps)

    def _act_ibrl_soft(self, obs: Obs, feats: Obs, how: Acting, measured: bool) -> Decided:
        """Soft IBRL: a candidate drawn with probability softmax(beta Q'(s, a))."""
        return self._choose(obs, feats, how, measured, soft_beta=self.cfg.soft_ibrl_beta)

    def _choose(self, obs: Obs, feats: Obs, how: Acting, measured: bool, **rule: float) -> Decided:
        """One of the RL and the BC actions, by the target critic's values of them."""
        own = None if how.method == "bc" else self._act_rl(feats, how)
        bc_action = feats[BASE] if self.cfg.residual else obs.get(BC_ACTION)
        candidates = self._candidates(how.method, own, obs, bc_action, how.rng)
        members = self._members(how.draws.members, how.host_rng)
        q, draws = self._target_q(feats, candidates, members), how.draws.choice
        action, index = select_candidate(candidates, q, generator=how.rng, draws=draws, **rule)
        self._saw(candidates, q, index)
        if not measured:
            return action, {}
        own_num, policies = 0 if own is None else own.size(1), len(self.bc_policies)
        metrics = act_metrics(
            candidates, q, index, how.eval_mode, own=own_num, policies=policies, **rule
        )
        return action, metrics

    def _candidates(
        self,
        method: str,
        own: torch.Tensor | None,
        obs: Obs,
        bc_action: torch.Tensor | None,
        rng: torch.Generator | None = None,
    ) -> torch.Tensor:
        """[B, N + K, W], first the actor's; without those (bc), or without the BC actions (rl)."""
        if method == "rl":
            assert own is not None
            return own
        if bc_action is None:
            bc_action = self.propose(obs, rng)
        return bc_action if own is None else torch.cat([own, bc_action], dim=1)

    def _seeing(
        self,
        feats: Obs,
        obs: Obs,
        bc_action: torch.Tensor | None,
        rng: torch.Generator | None = None,
    ) -> Obs:
        """Features, and what else the actor sees, [B, N, W] as BASE: the proposals that it
        corrects, or the noise that it makes actions of."""
        if self.cfg.residual:
            base = self.propose(obs, rng) if bc_action is None else bc_action
        elif self.cfg.distill:
            num = len(obs[self.input_keys[0]])
            base = draw(num, self.width, self.device, self.rng if rng is None else rng)
        else:
            return feats
        return {**feats, BASE: base}

    # -------------------------------------------------------------- features, Q

    def features(self, obs: Obs, augment: bool, shifts: torch.Tensor | None = None) -> Obs:
        """The input of actor and critic: {"state"} or {"feat" [B, patches, dim], "prop"}."""
        return self.head.features(obs, augment, shifts)

    def _target_q(self, feats: Obs, actions: torch.Tensor, members: Members) -> torch.Tensor:
        """The target critic's values of actions [B, N, W] by its (drawn) members -> [B, N]."""
        return self._over_members(self.critic_target.q(feats, actions, members))

    def _over_members(self, q: torch.Tensor) -> torch.Tensor:
        """Values [..., M] of members -> [...], by ``pessimism``."""
        return q.min(dim=-1).values if self.cfg.pessimism == "min" else q.mean(dim=-1)

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
            args = batch, scale, update_actor, bc_batch, ref_agent, draws
            metrics = self._run_update(self, *args)
            return metrics | (self.learning.update(batch) if self.learning else {})

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
            if self.cfg.residual:
                batch = self._with_proposals(batch)
            feats = self._seeing(feats, batch.obs, batch.bc_action)
            next_feats = self._seeing(next_feats, batch.next_obs, batch.next_bc_action)
            target_q, metrics = self.compute_target_q(batch, next_feats, stddev, draws)
        metrics["data/batch_R"] = batch.reward.mean()
        metrics["data/discount"] = batch.bootstrap.mean()
        metrics |= self.update_critic(feats, batch.action.flatten(1), target_q, batch.weight)
        if update_actor and self.uses_actor:
            # The features as they were before the encoder's step.
            feats = {k: v.detach() for k, v in feats.items()}
            if self.cfg.residual and self.cfg.residual_learns == "actions":
                feats[BASE] = batch.action.flatten(1).unsqueeze(1)
            if bc_batch is None:
                metrics |= self.update_actor(feats, stddev, draws, batch.obs)
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
        """TD target [B]: the reward of n (h) steps + bootstrap * Q'(s', a'), a' by bootstrap_method
        (eq. 3)."""
        own, method = None, self.bootstrap_method
        if method != "bc":
            dist = actions_of(self.actor_target, next_feats, stddev)
            action = dist.sample(self.cfg.stddev_clip, self.rng, draws.noise)
            own = each_row(action, next_feats)
        metrics: dict[str, torch.Tensor] = {}
        members = self._members(draws.members, self.host_rng)
        candidates = self._candidates(method, own, batch.next_obs, batch.next_bc_action)
        if method == "rl" and candidates.size(1) == 1:
            q = self._target_q(next_feats, candidates, members).squeeze(1)
        else:
            q, index = self._bootstrap_ibrl(next_feats, candidates, members, draws)
            if own is not None and method != "rl":
                metrics["actor/bootstrap_bc"] = (index >= own.size(1)).float().mean()
        target_q = torch.addcmul(batch.reward, batch.bootstrap, q)
        metrics["train/critic_qt"] = target_q.mean()
        return target_q, metrics

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
            self._over_members(q),
            soft_beta=self.soft_bootstrap,
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
        return self._over_members(torch.cat(parts, dim=-1)), index

    def update_critic(
        self,
        feats: Obs,
        action: torch.Tensor,
        target_q: torch.Tensor,
        weight: torch.Tensor | None = None,
    ) -> dict[str, torch.Tensor]:
        """One step on the squared TD error, summed over the ensemble, averaged over the batch; with
        ``value_bins`` on the cross entropy.

        weight: [B], of rows; None: 1. The target critic then follows by ``critic_target_tau``.
        """
        tau = self.cfg.critic_target_tau
        loss = None
        if weight is None:  # small networks: all in one call
            args = feats, action, target_q, self.critic_opt, self.critic_target, tau
            loss = self.critic.td_step(*args)
        if loss is None:
            error = self.critic.errors(feats, action, target_q).sum(dim=-1)
            loss = (error if weight is None else error * weight).mean()
            self._step(loss, self.critic_opt, self.encoder_opt)
            soft_update_params(*self._critic_params, tau)
        return {"train/critic_loss": loss.detach()}

    def update_actor(
        self,
        feats: Obs,
        stddev: float | torch.Tensor,
        draws: UpdateDraws = DRAWN_LATER,
        obs: Obs | None = None,
    ) -> dict[str, torch.Tensor]:
        """One step on -min Q(s, pi(s)); with ``distill`` also on the distance to the end of the BC
        policy's flow, which needs the observations."""
        loss = self._actor_loss(feats, stddev, draws)
        metrics = {"train/actor_loss": loss.detach()}
        if self.cfg.distill:
            assert obs is not None
            metrics["train/distill_loss"] = far = self._distill_loss(feats, obs)
            loss = loss + self.cfg.distill * far
        self._step(loss, self.actor_opt)
        return {key: value.detach() for key, value in metrics.items()}

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
        dist = actions_of(self.actor, feats, stddev)
        action = dist.sample(self.cfg.stddev_clip, self.rng, draws.actor_noise)
        feats = for_each(feats)
        with frozen(self._critic_params[0]):  # no gradients for weights that this step won't touch
            if self.cfg.pessimism == "min":
                return -self.critic.min_q(feats, action).mean()
            return -self.critic(feats, action).mean()

    def _distill_loss(self, feats: Obs, obs: Obs) -> torch.Tensor:
        """Mean squared distance of the actor's actions to the flow's, of the same noise."""
        with torch.no_grad():
            ends = teacher(self.bc_policies, self.horizon).follow(obs, feats[BASE])
        mean = actions_of(self.actor, feats, 0.0).mean
        return (each_row(mean, feats) - ends).square().mean()

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

    def optimizers(self) -> dict[str, Adam]:
        """The optimisers: critic, actor, and encoder for pixels."""
        opts = {"critic": self.critic_opt, "actor": self.actor_opt}
        opts |= {"encoder": self.encoder_opt} if self.encoder_opt is not None else {}
        return opts | self.learning.optimizers()

    def training_state(self) -> dict[str, Any]:
        """See :class:`Agent`."""
        return super().training_state() | {"learning": self.learning.rng_states()}
