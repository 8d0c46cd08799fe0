"""The base of all agents: their contract with the training loop, and the parts they share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple

import torch
from torch import nn

from common_utils.chunks import ChunkPlayer
from common_utils.device import resolve_device
from common_utils.ranges import Between
from common_utils.seeding import generator_on, other_device, restore_generator
from common_utils.specs import (
    BC_ACTION,
    CLOCK,
    ONE_STEP,
    Batch,
    Decision,
    Obs,
    PlaysChunks,
    Policy,
    Window,
)
from networks.exported import Graphs

# kinds of chunks of an episode (``ChunkPlayer``): the agent's own, and those of a BC policy
OWN, IMITATED = 0, 1


@dataclass(frozen=True)
class AgentInputs:
    """An agent's inputs and outputs, as the environment declares them: all building one needs."""

    # the stacked state [S], or the stacked images of one camera [C, H, W]
    obs_shape: tuple[int, ...]
    action_dim: int
    # "": the agent sees states
    camera: str = ""
    # the stacked proprioception [P]; (0,) without it
    prop_shape: tuple[int, ...] = (0,)
    # seed of the agent's own generators
    seed: int = 0

    @property
    def kind(self) -> str:
        """Of observation: "pixel" or "state"."""
        return "pixel" if self.camera else "state"

    @property
    def seen(self) -> tuple[tuple[int, ...], tuple[int, ...], int, str]:
        """(obs_shape, prop_shape, action_dim, camera), the order of this package's constructors."""
        return self.obs_shape, self.prop_shape, self.action_dim, self.camera


class RunFacts(NamedTuple):
    """The parts of a run's configuration that the agent's must be consistent with."""

    use_state: bool
    # whether the replay has demonstrations
    demonstrations: bool
    # whether it is pretrained, by BC or with another agent's weights
    pretrained: bool
    # whether the actor's loss has RFT's BC regulariser
    add_bc_loss: bool
    # steps whose rewards the TD target sums
    nstep: int = 1
    # whether the actor is pretrained by BC
    pretrains: bool = False


@dataclass
class AgentConfig:
    """Base of the agents' configurations."""

    # auto (cuda when present), cpu, cuda or cuda:N
    device: str = "auto"
    # candidate actions each BC policy proposes (1 = IBRL as published)
    num_bc_samples: Annotated[int, Between(1, 4096)] = 1

    @property
    def bc_fields(self) -> tuple[str, ...]:
        """Fields whose values require a BC policy; () if none is needed."""
        return ()

    def check(self, run: RunFacts) -> None:
        """Raise ValueError, starting with the field, if one is inconsistent with the run."""


class Networks(NamedTuple):
    """Networks for an estimate of their memory: layers' sizes matter, weights do not."""

    # by name: "encoder" sees the image, "critic" values the candidates
    trained: Mapping[str, nn.Module]
    # names of the networks that have a target copy
    targets: tuple[str, ...] = ()


class EvalVariant(NamedTuple):
    """Another way in which an agent is evaluated, in the same episodes."""

    # the logged keys of its score, and of its gain over the usual way
    score: str
    difference: str
    # context in which the agent acts that way
    acting: AbstractContextManager[None]


class Agent(nn.Module, ABC):
    """An agent over observation dicts, with BC policies attached.

    The training loop, the evaluator and the replay rely only on what is declared here.
    ``rl.registry`` lists the agents.

    Args:
        device: auto, cpu, cuda or cuda:N.
        num_bc_samples: candidate actions each BC policy proposes.
        seed: seed of the agent's own generators (exploration noise, subsets).
        horizon: h, the steps whose actions it decides on at once, and then plays.

    ``state_dict`` is the checkpoint for users; it has no BC policies and no optimisers.
    """

    # what a row of its batches is
    window: Window = ONE_STEP

    def __init__(self, device: str, num_bc_samples: int, seed: int, horizon: int = 1) -> None:
        super().__init__()
        self.horizon = horizon
        self.player = ChunkPlayer(horizon)
        self.device = torch.device(resolve_device(device))
        self._num_bc_samples = num_bc_samples
        # kept out of nn.Module's registry: they are not part of this agent's checkpoint
        self.bc_policies: list[Policy] = []
        self.rng = torch.Generator(self.device).manual_seed(seed)
        self.host_rng = torch.Generator().manual_seed(seed + 1)
        # evaluation draws from its own generators, so that it never disturbs training
        self._eval_rng = torch.Generator(self.device).manual_seed(seed + 2)
        self._eval_host_rng = torch.Generator().manual_seed(seed + 3)
        self.stats: Any = None
        # while explaining: the candidates, values and choices of act; else None
        self._seen: list[tuple[torch.Tensor, ...]] | None = None

    # ----------------------------------------------------------------- the contract

    @property
    @abstractmethod
    def input_keys(self) -> list[str]:
        """The observations it reads, which a replay must hold; images or states first."""

    @property
    @abstractmethod
    def stochastic_eval(self) -> bool:
        """Whether ``act(eval_mode=True)`` draws random numbers."""

    @abstractmethod
    def act(
        self,
        obs: Mapping[str, torch.Tensor],
        *,
        eval_mode: bool = False,
        stddev: float = 0.0,
        cpu: bool = True,
        generator: torch.Generator | None = None,
    ) -> torch.Tensor:
        """Action float32 [A], or [B, A] for batched observations.

        Args:
            obs: a cached ``bc_action`` [K, h * A] is used if present; the dict is not changed.
                With a horizon above 1 ``specs.CLOCK`` says which action of an episode's chunk it
                is; without it a new chunk's first action is taken.
            eval_mode: without exploration.
            stddev: exploration noise.
            cpu: return on the CPU.
            generator: CPU generator for this call; None: the agent's own.
        """

    @abstractmethod
    def update(
        self,
        batch: Batch,
        stddev: float,
        update_actor: bool,
        bc_batch: Batch | None = None,
        ref_agent: Any = None,
    ) -> dict[str, torch.Tensor]:
        """One critic step, and one actor step if asked; returns detached scalar metrics."""

    @abstractmethod
    def optimizers(self) -> Mapping[str, torch.optim.Optimizer]:
        """Its optimisers by name."""

    # ------------------------------------------- optional parts

    def fit(self, observations: Iterable[Obs]) -> None:
        """Take statistics of demonstrations before anything is learned (nothing by default).

        Args:
            observations: [T, ...] of each demonstration, stacks assembled; made on demand.
        """

    def eval_variants(self) -> list[EvalVariant]:
        """Ways to act that are evaluated in addition to the usual one."""
        return []

    def value(self, obs: Mapping[str, torch.Tensor], action: torch.Tensor) -> torch.Tensor | None:
        """What the agent expects of an action: a scalar for ``obs`` and ``action`` [A], or [B] for
        batched ones, in discounted reward. Draws no random numbers. None: it has no critic.
        """
        return None

    def policy_of(self, weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Another agent's ``weights``, but with this agent's own weights for its critics.

        By default all of ``weights``, since there are no critics.
        """
        return dict(weights)

    def graphs(self) -> Graphs:
        """What can be exported of it, by name (``networks.exported``), or why it cannot."""
        return {"action": f"{type(self).__name__} has no graph to export"}

    # RFT: of agents whose row in ``rl.registry`` has ``rft``

    def pretrain_actor_with_bc(self, batch: Batch) -> dict[str, torch.Tensor]:
        """One BC step on demonstrations; returns detached scalar metrics."""
        raise NotImplementedError(f"{type(self).__name__} has no BC pretraining")

    def finish_pretraining(self) -> None:
        """Called after BC pretraining, and after another agent's weights were loaded."""

    def reference_copy(self) -> Agent:
        """A frozen copy, which RFT's regulariser compares with."""
        raise NotImplementedError(f"{type(self).__name__} has no reference agent")

    # ----------------------------------------------------------------- explaining

    def explain(self, obs: Obs, *, generator: torch.Generator | None = None) -> Decision:
        """See :class:`common_utils.specs.Explainer`: it is ``act`` that runs, and :meth:`_saw`
        keeps what it chose from. An agent that does not call :meth:`_saw` has no candidates.
        """
        seen: list[tuple[torch.Tensor, ...]] = []
        self._seen = seen
        try:
            action = self.act(obs, eval_mode=True, generator=generator)
        finally:
            self._seen = None
        if not seen:
            return Decision(action)
        candidates, values, index = (x[0].float().cpu() for x in seen[-1])
        candidates = candidates[:, : action.shape[-1]]  # of chunks the first actions
        names = self.candidate_names(len(candidates))
        return Decision(action, candidates, values, int(index), names)

    def _saw(self, candidates: torch.Tensor, values: torch.Tensor, index: torch.Tensor) -> None:
        """Called by ``act`` with candidates [B, N, A], their values [B, N] and choices [B]."""
        if self._seen is not None:
            self._seen.append((candidates, values, index))

    def candidate_names(self, num: int) -> tuple[str, ...]:
        """Words for the candidates: the agent's own action first, then those of each BC policy."""
        own = self.num_own
        bc = num - own  # 0 for one that acts by itself and asks no BC policy
        first = ("rl",) if own == 1 else tuple(f"rl{i}" for i in range(own))
        return first + (("bc",) if bc == 1 else tuple(f"bc{i}" for i in range(bc)))

    @property
    def num_own(self) -> int:
        """Candidates of its own, before those of BC policies."""
        return 1

    # ------------------------------------------------------------------ BC policies

    @property
    def num_bc_action(self) -> int:
        """K, the BC candidates per observation; 0 without a BC policy."""
        return len(self.bc_policies) * self._num_bc_samples

    @property
    def num_stored(self) -> int:
        """Proposals that the replay stores with an observation: all of frozen policies."""
        return self.num_bc_action

    @property
    def needs_clock(self) -> bool:
        """Whether it or a BC policy plays chunks of actions, and needs ``specs.CLOCK``."""
        return self.player.needs_clock or any(p.needs_clock for p in self._that_remember())

    def bc_memory(self) -> list[dict[str, Any]]:
        """What BC policies, in order, and the agent remember of the episodes being played."""
        return [*(p.memory_state() for p in self._that_remember()), self.player.state_dict()]

    def load_bc_memory(self, states: Sequence[Mapping[str, Any]]) -> None:
        """Inverse of :meth:`bc_memory`."""
        loads = [p.load_memory_state for p in self._that_remember()]
        for load, state in zip([*loads, self.player.load_state_dict], states, strict=False):
            load(state)

    def _that_remember(self) -> list[PlaysChunks]:
        return [p for p in self.bc_policies if isinstance(p, PlaysChunks)]

    def add_bc_policy(self, policy: Policy) -> None:
        """Attach a BC policy (frozen, eval mode); several may be attached."""
        if not isinstance(policy, nn.Module):
            raise TypeError(f"BC policy must be an nn.Module, got {type(policy).__name__}")
        policy.to(self.device).eval().requires_grad_(False)
        self.bc_policies.append(policy)

    @torch.no_grad()
    def propose(self, obs: Obs, generator: torch.Generator | None = None) -> torch.Tensor:
        """All BC candidates for a batched observation: float32 [B, K, h * A].

        The replay stores them as ``bc_action``. Policies that sample (implicit ones) draw from
        ``generator`` (default: the agent's own).
        """
        if not self.bc_policies:
            raise RuntimeError(
                "no BC policy proposes actions: attach one with add_bc_policy "
                "(config field bc_policy)"
            )
        num, rng = self._num_bc_samples, self.rng if generator is None else generator
        how: dict[str, Any] = {"horizon": self.horizon} if self.horizon > 1 else {}
        proposals = [p.propose(obs, num, generator=rng, **how) for p in self.bc_policies]
        return torch.cat(proposals, dim=1)

    def imitate(self, obs: Obs) -> torch.Tensor:
        """What the first BC candidate of batched observations does, float32 [B, A]; candidates
        that they carry are taken."""

        def first(some: Obs) -> torch.Tensor:
            proposed = some[BC_ACTION] if BC_ACTION in some else self.propose(some)
            return proposed[:, :1].unflatten(-1, (self.horizon, -1))

        return self.player.play(obs, IMITATED, first).squeeze(1)

    # ------------------------------------------------------------------------ shared

    def set_stats(self, stats: Any) -> None:
        """Give the agent a meter (``append(key, value)``) for metrics of its acting."""
        self.stats = stats

    def _append_stats(self, metrics: dict[str, torch.Tensor]) -> None:
        if self.stats is not None:
            for name, value in metrics.items():
                self.stats.append(name, value)

    def _on_device(self, generator: torch.Generator | None) -> torch.Generator | None:
        """The caller's CPU generator, or one on the agent's device seeded from it."""
        return None if generator is None else generator_on(self.device, generator)

    def _to_batched(self, obs: Mapping[str, torch.Tensor], batched_dim: int) -> tuple[Obs, bool]:
        """The observation on the agent's device with a batch axis, and whether it had one."""
        key = self.input_keys[0]
        if key not in obs:
            raise KeyError(f"observation '{key}' is missing; the observation has {sorted(obs)}")
        batched = obs[key].dim() == batched_dim
        # the host reads the time
        out = {k: v if k == CLOCK else v.to(self.device) for k, v in obs.items()}
        return (out if batched else {k: v.unsqueeze(0) for k, v in out.items()}), batched

    def _generators(self) -> dict[str, torch.Generator]:
        return {
            "rng": self.rng,
            "host_rng": self.host_rng,
            "eval_rng": self._eval_rng,
            "eval_host_rng": self._eval_host_rng,
        }

    def training_state(self) -> dict[str, Any]:
        """Everything exact resume needs: weights, targets, optimisers, generators."""
        return {
            "model": self.state_dict(),
            "optimizers": {k: o.state_dict() for k, o in self.optimizers().items()},
            **{name: g.get_state() for name, g in self._generators().items()},
        }

    def load_training_state(self, state: Mapping[str, Any]) -> None:
        """Inverse of :meth:`training_state`, also for a state from another device."""
        self.load_state_dict(state["model"])
        for name, opt in self.optimizers().items():
            opt.load_state_dict(state["optimizers"][name])
        for name, generator in self._generators().items():
            restore_generator(generator, state[name])

    def moved(self, state: Mapping[str, Any]) -> str:
        """The message if ``state`` comes from another kind of device, else ""."""
        return other_device(self.rng, state["rng"])
