"""From decisions to actions: batches, generators, graphs, and chunks played in time."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from functools import partial

import torch

from common_utils.specs import Obs
from networks.precision import products
from rl.agent import OWN
from rl.critic import Members
from rl.drawing import Acting, Drawing

# actions [B, W], and metrics
Decided = tuple[torch.Tensor, dict[str, torch.Tensor]]


class ActsByValue(Drawing):
    """An agent that decides by :meth:`_decide`, for batched observations; the rest is here."""

    action_dim: int
    _run_decide: Callable[..., Decided]

    @abstractmethod
    def _decide(self, obs: Obs, how: Acting, measured: bool) -> Decided:
        """The actions [B, W] for observations, and their metrics if ``measured``; a function of
        tensors, which may be a graph."""

    @abstractmethod
    def _target_q(self, feats: Obs, actions: torch.Tensor, members: Members) -> torch.Tensor:
        """The target critic's values of actions [B, N, W] by its (drawn) members -> [B, N]."""

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
        """See :class:`Agent`: with ``eval_mode`` the actor's mean, else its sample with ``stddev``.
        RuntimeError in train mode."""
        if self.training:
            raise RuntimeError("QAgent.act: the agent is in train mode; call agent.eval() first")
        obs, batched = self._to_batched(obs, self.head.batched_dim)
        decide = partial(self._decided, how=self._how(eval_mode, stddev, generator))
        if self.horizon == 1:
            action = decide(obs).squeeze(1)
        else:
            action = self.player.play(obs, OWN, lambda some: decide(some).unsqueeze(1)).squeeze(1)
        if not batched:
            action = action.squeeze(0)
        return action.cpu() if cpu else action

    @torch.no_grad()
    def act_chunk(
        self, obs: Obs, *, eval_mode: bool = True, generator: torch.Generator | None = None
    ) -> torch.Tensor:
        """See :class:`common_utils.specs.ActsInChunks`; T is the horizon."""
        seen, batched = self._to_batched(obs, self.head.batched_dim)
        chunks = self._decided(seen, self._how(eval_mode, 0.0, generator)).cpu()
        return chunks if batched else chunks.squeeze(0)

    def _how(self, eval_mode: bool, stddev: float, generator: torch.Generator | None) -> Acting:
        rng = self._on_device(generator) or (self._eval_rng if eval_mode else self.rng)
        host_rng = generator or (self._eval_host_rng if eval_mode else self.host_rng)
        return Acting(self.act_method, eval_mode, stddev, rng, host_rng)

    def _decided(self, obs: Obs, how: Acting) -> torch.Tensor:
        """Chunks [B, h, A] for observations."""
        if self.cfg.compile != "off":
            obs, how = self._drawn_before(obs, how)
        with products(self.cfg.precision, self.device):
            # a graph returns the action alone
            decide = self._run_decide if self._seen is None else type(self)._decide
            action, metrics = decide(self, obs, how, self.stats is not None)
        self._append_stats(metrics)
        return action.unflatten(-1, (self.horizon, self.action_dim))

    @torch.no_grad()
    def value(self, obs: Mapping[str, torch.Tensor], action: torch.Tensor) -> torch.Tensor | None:
        """See :class:`Agent`: Q(s, a), the mean over all members of the critic. With a horizon
        above 1 of the chunk that begins with ``action``, if it is being played; else None."""
        feats, batched = self._to_batched(obs, self.head.batched_dim)
        actions = action.to(self.device) if batched else action.to(self.device).unsqueeze(0)
        if self.horizon > 1:
            chunks = self.player.begun(feats, OWN)
            if chunks is None:
                return None
            actions = chunks.flatten(1)
        with products(self.cfg.precision, self.device):
            q = self.critic(self.features(feats, augment=False), actions).mean(dim=-1)
        return q if batched else q.squeeze(0)

    def _saw_only(self, feats: Obs, action: torch.Tensor) -> None:
        """An action [B, W] without alternatives, valued by all members: that draws nothing."""
        if self._seen is not None:
            candidates = action.unsqueeze(1)
            first = torch.zeros(len(action), dtype=torch.int64)
            self._saw(candidates, self._target_q(feats, candidates, None), first)
