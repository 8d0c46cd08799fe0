"""How an agent draws all random numbers of an update or an action before it, for its graph."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import torch

from common_utils.specs import BC_ACTION, Batch, Obs
from networks.optim import Adam
from rl import rft
from rl.critic import Critic, Members, MultiFcQ
from rl.draws import ActDraws, UpdateDraws
from rl.heads import Head
from rl.q_agent_config import QAgentConfig
from rl.selection import draw_choice


class Acting(NamedTuple):
    """How one call of ``act`` explores, and its source of random numbers."""

    # the agent's act_method
    method: str
    eval_mode: bool
    stddev: float | torch.Tensor
    # None in a graph, where ``draws`` has all numbers
    rng: torch.Generator | None
    host_rng: torch.Generator | None
    draws: ActDraws = ActDraws()


class Drawing(rft.Regularised):
    """Draws in the order in which the plain code does, where it needs them."""

    cfg: QAgentConfig
    head: Head
    critic_target: Critic | MultiFcQ
    act_method: str
    bootstrap_method: str
    # W, the numbers of an action, or of a chunk of actions
    width: int

    def eps_greedy(self, eval_mode: bool) -> float:
        """Probability of playing the better candidate (hard IBRL)."""
        return 1.0 if eval_mode else self.cfg.ibrl_eps_greedy

    @property
    def uses_actor(self) -> bool:
        """Whether the actor's action is a candidate, so that the actor learns."""
        return {self.act_method, self.bootstrap_method} != {"bc"}

    def own_of(self, method: str) -> int:
        """Candidates of the actor: one, or one per proposal that it corrects."""
        if method == "bc":
            return 0
        return self.num_bc_action if self.cfg.residual else 1

    def columns_of(self, method: str) -> int:
        """All candidates."""
        return self.own_of(method) + (0 if method == "rl" else self.num_bc_action)

    def chooses(self, method: str) -> bool:
        """Whether there are several candidates, or BC's."""
        return method != "rl" or self.own_of(method) > 1

    @property
    def soft_bootstrap(self) -> float | None:
        """beta of a soft choice for the TD target; None: the best candidate."""
        return self.cfg.soft_ibrl_beta if self.bootstrap_method == "ibrl_soft" else None

    def _prepare_optimizers(self) -> None:
        """Make the optimisers' state, which no graph can create."""
        for opt in self.optimizers().values():
            assert isinstance(opt, Adam)
            opt.prepare()

    def _drawn_before(self, obs: Obs, how: Acting) -> tuple[Obs, Acting]:
        """All that a graph needs to act: proposals and random numbers as tensors."""
        rows = len(obs[self.input_keys[0]])
        if self.cfg.residual and BC_ACTION not in obs:  # the plain code needs them first as well
            obs = {**obs, BC_ACTION: self.propose(obs, how.rng)}
        noise = None if how.eval_mode else self._noise(rows, how.method, how.rng)
        members = choice = None
        if self.chooses(how.method):
            if BC_ACTION not in obs:
                obs = {**obs, BC_ACTION: self.propose(obs, how.rng)}
            members = self._draw_members(how.host_rng)
            values = torch.empty(rows, self.columns_of(how.method), device=self.device)
            soft = self.cfg.soft_ibrl_beta if how.method == "ibrl_soft" else None
            eps = 1.0 if soft is not None else self.eps_greedy(how.eval_mode)
            choice = draw_choice(values, soft_beta=soft, eps_greedy=eps, generator=how.rng)
        draws = ActDraws(noise, members, choice)
        stddev = self._scalar(how.stddev)
        return obs, how._replace(stddev=stddev, rng=None, host_rng=None, draws=draws)

    def _draw_update(
        self, batch: Batch, update_actor: bool, bc_batch: Batch | None
    ) -> tuple[Batch, UpdateDraws]:
        """The batch with proposals if needed, and every random number of an update with it."""
        rows, rng, method = len(batch.action), self.rng, self.bootstrap_method
        shifts, next_shifts = (self.head.draw_shifts(rows, self.device) for _ in range(2))
        if self.cfg.residual:
            batch = self._with_proposals(batch)
        noise, first = self._noise(rows, method, rng), self._draw_members(self.host_rng)
        second = choice = None
        if self.chooses(method):
            if batch.next_bc_action is None:
                batch = replace(batch, next_bc_action=self.propose(batch.next_obs))
            values = torch.empty(rows, self.columns_of(method), device=self.device)
            choice = draw_choice(values, soft_beta=self.soft_bootstrap, generator=rng)
            second = self._draw_members(self.host_rng)
        draws = UpdateDraws(shifts, next_shifts, noise, first, second, choice)
        if update_actor and self.uses_actor:
            one = self.cfg.residual_learns == "actions"  # one action of a row, as without residual
            noise = self._normal(rows, rng) if one else self._noise(rows, "rl", rng)
            draws = draws._replace(actor_noise=noise)
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

    def _with_proposals(self, batch: Batch) -> Batch:
        """The batch with the proposals that a residual actor corrects."""
        if batch.bc_action is None:
            batch = replace(batch, bc_action=self.propose(batch.obs))
        if batch.next_bc_action is None:
            batch = replace(batch, next_bc_action=self.propose(batch.next_obs))
        return batch

    def _noise(self, rows: int, method: str, rng: torch.Generator | None) -> torch.Tensor | None:
        """Of the actor's candidates of so many observations."""
        own = self.own_of(method)
        return self._normal(rows * own, rng) if own else None

    def _normal(self, rows: int, rng: torch.Generator | None) -> torch.Tensor:
        return torch.randn(rows, self.width, generator=rng, device=self.device)

    def _scalar(self, value: float | torch.Tensor) -> torch.Tensor:
        """A number as a tensor, so that a graph holds for all of its values."""
        assert isinstance(value, (int, float))  # the caller's
        return torch.full((), value, device=self.device)

    def _draw_members(self, rng: torch.Generator | None) -> torch.Tensor | None:
        """Members of a random subset as an index int64 [K]; None if there is nothing to draw."""
        if not self.critic_target.draws_subset:
            return None
        drawn = torch.tensor(self.critic_target.draw_members(rng))
        if self.device.type == "cuda":  # the host does not wait for the copy
            drawn = drawn.pin_memory()
        return drawn.to(self.device, non_blocking=True)

    def _members(self, drawn: torch.Tensor | None, rng: torch.Generator | None) -> Members:
        return self.critic_target.draw_members(rng) if drawn is None else drawn
