"""Shapes and types of what the packages exchange.

Observation dict (numpy or torch, one step, no batch axis unless stated):

====================  =======================  =============================================
key                   shape, dtype             meaning
====================  =======================  =============================================
``{camera}``          [3*obs_stack, H, W] u8   upright RGB, newest frame first
``prop``              [P*prop_stack] f32       proprioception, newest first
``state``             [S*state_stack] f32      simulator state vector, newest first
``bc_action``         [K, A] f32               cached BC proposals (added by the agent's side,
                                               never by an environment)
``clock``             [2] i64                  the episode's number, and the step in it (added for
                                               policies that play chunks of actions)
====================  =======================  =============================================

Stacks are newest first and padded with zeros before the episode's start
(``concat_obs`` of the original). Actions are float32 [A] in [-1, 1].
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

import numpy as np

from common_utils.errors import UserError

if TYPE_CHECKING:  # environments import this file, and their workers must not pay for torch
    import torch

BC_ACTION = "bc_action"
# metrics of an evaluation's episode: what the critic expected at its start, and what it got
START_Q, DISCOUNTED_RETURN = "start_q", "discounted_return"
CLOCK = "clock"
TRAINING = 2**32
"""Numbers of training's episodes in ``CLOCK`` begin here, those of evaluations are their seeds."""


class SpecError(UserError):
    """Two things that must match (data, checkpoint, environment, agent) do not."""


@dataclass(frozen=True)
class ArraySpec:
    """Shape and dtype of one array, as it is delivered (stacking included).

    ``stack`` says how many steps the leading axis holds, so that
    ``shape[0] // stack`` is one step's share.
    """

    shape: tuple[int, ...]
    dtype: str = "float32"
    stack: int = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", tuple(int(s) for s in self.shape))
        np.dtype(self.dtype)  # raises TypeError on nonsense
        if self.stack < 1 or (self.shape and self.shape[0] % self.stack):
            raise SpecError(f"shape {self.shape} does not divide into {self.stack} stacked steps")

    @property
    def frame_shape(self) -> tuple[int, ...]:
        """Shape of a single, unstacked step."""
        return (self.shape[0] // self.stack, *self.shape[1:])

    @property
    def nbytes(self) -> int:
        """Bytes of one stacked array."""
        return int(np.prod(self.shape)) * np.dtype(self.dtype).itemsize


@dataclass(frozen=True)
class EnvSpec:
    """Enough to build an agent, and to check data against it, without a simulator.

    ``horizon`` is the time limit in control steps (after action repeat).
    ``cameras`` are the keys of ``observations`` that are images.
    """

    suite: str
    task: str
    observations: Mapping[str, ArraySpec]
    action_dim: int
    horizon: int
    cameras: tuple[str, ...] = ()
    extra: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain dict (JSON and weights_only safe)."""
        return {
            "suite": self.suite,
            "task": self.task,
            "observations": {
                k: {"shape": list(v.shape), "dtype": v.dtype, "stack": v.stack}
                for k, v in self.observations.items()
            },
            "action_dim": self.action_dim,
            "horizon": self.horizon,
            "cameras": list(self.cameras),
        }

    @classmethod
    def from_dict(cls, d: Mapping[str, Any]) -> EnvSpec:
        """Inverse of :meth:`to_dict`."""
        return cls(
            suite=d["suite"],
            task=d["task"],
            observations={
                k: ArraySpec(tuple(v["shape"]), v["dtype"], v["stack"])
                for k, v in d["observations"].items()
            },
            action_dim=int(d["action_dim"]),
            horizon=int(d["horizon"]),
            cameras=tuple(d["cameras"]),
        )

    def check_provides(self, needed: Mapping[str, ArraySpec], action_dim: int, who: str) -> None:
        """Raise SpecError unless the environment delivers what ``who`` needs, shapes and dtypes."""
        if action_dim != self.action_dim:
            raise SpecError(
                f"{who}: action dimension {action_dim}, but {self.suite}/{self.task} takes "
                f"{self.action_dim}"
            )
        for key, want in needed.items():
            have = self.observations.get(key)
            if have is None:
                raise SpecError(
                    f"{who}: needs observation '{key}', but {self.suite}/{self.task} delivers "
                    f"{sorted(self.observations)}"
                )
            if have.shape != want.shape or have.dtype != want.dtype:
                raise SpecError(
                    f"{who}: observation '{key}' must be {want.dtype}{list(want.shape)}, but "
                    f"{self.suite}/{self.task} delivers {have.dtype}{list(have.shape)}"
                )


Obs = dict[str, "torch.Tensor"]


@runtime_checkable
class Player(Protocol):
    """What an evaluation can play: a BC policy or an RL agent."""

    # whether act draws random numbers in eval mode; an evaluation then gives each episode its
    # own generator, so that it plays the same way alone and in a pool
    @property
    def stochastic_eval(self) -> bool: ...

    def act(
        self,
        obs: Obs,
        *,
        eval_mode: bool = True,
        cpu: bool = True,
        generator: torch.Generator | None = None,
    ) -> torch.Tensor:
        """Action float32 [A] for one observation, or [B, A] for a batched one.

        Random numbers come from ``generator``, on the CPU (None: the player's own).
        """
        ...


@dataclass(frozen=True)
class Decision:
    """An action for one observation, and what it was chosen from; all on the CPU.

    action      float32 [A]
    candidates  float32 [N, A], among which the player chose; None if it does not choose
    values      float32 [N]: the value of each, of which higher is better
    chosen      the row of the chosen one
    names       N words for the candidates
    landscape   float32 [G, G]: energies of actions, lower is better. The action's first dimension
                rises to the right, the second upwards, from -1 to 1; others are as in ``action``
    """

    action: torch.Tensor
    candidates: torch.Tensor | None = None
    values: torch.Tensor | None = None
    chosen: int = 0
    names: tuple[str, ...] = ()
    landscape: torch.Tensor | None = None


@runtime_checkable
class Explainer(Player, Protocol):
    """A player that can say why it takes an action. It is optional, for recordings."""

    def explain(self, obs: Obs, *, generator: torch.Generator | None = None) -> Decision:
        """The action of ``act(obs, eval_mode=True, generator=generator)``, bit for bit and with the
        same draws from the generator, and its reasons; for one observation."""
        ...


@runtime_checkable
class Policy(Player, Protocol):
    """A BC policy, explicit or implicit; anything that can bootstrap IBRL.

    Also an ``nn.Module`` whose ``state_dict`` is self-contained (normaliser included).
    """

    def propose(
        self,
        obs: Obs,
        n: int,
        *,
        horizon: int | None = None,
        generator: torch.Generator | None = None,
    ) -> torch.Tensor:
        """Candidate actions float32 [B, n, A] for a batched observation dict; with a ``horizon``
        those of as many steps, [B, n, horizon * A]."""
        ...

    def loss(self, batch: Any) -> torch.Tensor:
        """Training loss, a scalar with graph."""
        ...

    def fit(self, batches: Iterable[Any]) -> None:
        """Compute statistics from batches of demonstrations, before training."""
        ...

    def seed(self, seed: int) -> None:
        """Seed the policy's own generator."""
        ...


@runtime_checkable
class ActsInChunks(Protocol):
    """A player that can say all the actions that it has decided on, for others to play."""

    def act_chunk(
        self, obs: Obs, *, eval_mode: bool = True, generator: torch.Generator | None = None
    ) -> torch.Tensor:
        """float32 [T, A], or [B, T, A] for batched observations, on the CPU."""
        ...


@runtime_checkable
class PlaysChunks(Protocol):
    """A policy that remembers, of each episode, the actions that it has already decided on."""

    # whether it does, so that observations must carry CLOCK
    @property
    def needs_clock(self) -> bool: ...

    def memory_state(self) -> dict[str, Any]:
        """What it remembers of the episodes that are being played, as plain data and tensors."""
        ...

    def load_memory_state(self, state: Mapping[str, Any]) -> None:
        """Inverse of :meth:`memory_state`."""
        ...


@dataclass(frozen=True)
class Window:
    """What a row of a batch is: a transition, or with a horizon above 1 so many steps.

    A window ends where its episode does: reward, bootstrap and next observation are those of the
    steps that there are. Windows go with nstep 1.

    tail: whether windows that are cut short teach the critics. absorb: they do, as if nothing
        changed after the end. drop (as Q-chunking was published): they do not, so an episode
        shorter than the horizon teaches nothing.
    """

    horizon: int = 1
    tail: Literal["absorb", "drop"] = "absorb"


ONE_STEP = Window()


@dataclass
class Batch:
    """A batch of transitions or windows (B rows), torch tensors on one device.

    obs, next_obs   dict of [B, ...] (stacks assembled, dtypes as stored)
    action          float32 [B, A]; of windows of h steps [B, h, A]
    reward          float32 [B]   sum over the n or h steps, discounted
    bootstrap       float32 [B]   gamma^k, or 0 after a terminal step
    bc_action, next_bc_action  float32 [B, K, A], of agents over chunks [B, K, h * A]; or None
    rewards         float32 [B, h]  of windows: of each step; else None
    valid           float32 [B, h]  of windows: 0 behind the episode's end, where the last action is
                                    repeated and rewards are 0; else None
    weight          float32 [B]     of a row in the critics' losses; None: 1
    """

    obs: Obs
    next_obs: Obs
    action: torch.Tensor
    reward: torch.Tensor
    bootstrap: torch.Tensor
    bc_action: torch.Tensor | None = None
    next_bc_action: torch.Tensor | None = None
    rewards: torch.Tensor | None = None
    valid: torch.Tensor | None = None
    weight: torch.Tensor | None = None
