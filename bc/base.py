"""The contract of all behaviour-cloning policies: inputs, acting, proposing, fitting and loss.

``BasePolicy`` keeps the bookkeeping (batches, devices, generators, modes) in one place, so that
a policy defines only its loss and how it chooses actions for a batch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from common_utils.chunks import ChunkPlayer
from common_utils.ibrl_utils import require_key
from common_utils.seeding import generator_on, other_device, restore_generator
from common_utils.specs import CLOCK, ArraySpec, Obs
from networks.exported import Graphs


def batch_action(batch: Any) -> torch.Tensor:
    """The actions [B, A] (chunks: [B, T, A]) of a batch whose ``action`` is a tensor or
    {"action": tensor}."""
    action = batch.action
    return action["action"] if isinstance(action, dict) else action


@dataclass(frozen=True)
class PolicyInputs:
    """A policy's inputs and outputs, as the data declare them: all that building one needs."""

    # the stacked state [S], or the stacked images of one camera [C, H, W]
    obs_shape: tuple[int, ...]
    action_dim: int
    # number of steps stacked in obs_shape
    stack: int = 1
    # empty: the policy sees states
    cameras: tuple[str, ...] = ()
    # the stacked proprioception [P]; () without it
    prop_shape: tuple[int, ...] = ()

    @property
    def key(self) -> str:
        """The observation that the policy sees: "state", or the (first) camera."""
        return self.cameras[0] if self.cameras else "state"


@dataclass
class PolicyConfig:
    """Base of the policies' configurations."""

    def check(self, pixels: bool) -> None:
        """Raise ValueError, starting with the field that images (or states) do not allow."""

    @property
    def horizon(self) -> int:
        """Actions that the loss needs of each demonstrated step: its own and following ones."""
        return 1

    @property
    def draws_in_training(self) -> bool:
        """Whether the loss draws from the policy's generator, which no graph can do."""
        return False

    @property
    def rows_per_sample(self) -> int:
        """Actions that the network evaluates for each demonstrated step in training."""
        return 1

    @property
    def rows_when_acting(self) -> int:
        """Actions that the network evaluates for each observation when acting."""
        return 1


class BasePolicy(nn.Module, ABC):
    """Base of explicit and implicit policies; implements ``common_utils.specs.Policy``.

    A subclass defines :meth:`build`, :meth:`input_specs`, :meth:`loss`, :meth:`_act` and
    :meth:`_propose`, and :meth:`fit` if it takes statistics from the data. Its random draws come
    from the generator passed in when acting, and from its own (:attr:`generator`) in training.
    A row in ``bc.registry`` makes it a ``policy_type`` of ``train_bc.py``.

    A policy over chunks of actions sets :attr:`chunked` and :attr:`player`. Its :meth:`_act` and
    :meth:`_propose` then have an axis for the T steps of a chunk: [B, T, A] and [B, n, T, A].
    """

    action_dim: int
    chunked: bool = False
    # act and propose draw random numbers even in eval mode
    stochastic_eval: bool = False

    def __init__(self) -> None:
        super().__init__()
        # detached scalars of the last loss, by name, for the logs
        self.metrics: dict[str, torch.Tensor] = {}
        # remarks on the last fit for the user, one line each
        self.notes: list[str] = []
        self.player = ChunkPlayer(1)
        self._seed = 0
        self._rng: torch.Generator | None = None

    # ------------------------------------------------------------- defined by each policy

    @classmethod
    @abstractmethod
    def build(cls, inputs: PolicyInputs, cfg: Any) -> BasePolicy:
        """A new policy; ValueError names the field of ``cfg`` that cannot be used."""

    @abstractmethod
    def input_specs(self) -> dict[str, ArraySpec]:
        """The observations that the environment must deliver (no batch axis)."""

    @abstractmethod
    def loss(self, batch: Any) -> torch.Tensor:
        """Training loss, a scalar with graph; ``batch`` has ``obs`` and ``action`` [B, A]."""

    @abstractmethod
    def _act(self, inputs: Obs, greedy: bool, generator: torch.Generator | None) -> torch.Tensor:
        """Inputs [B, ...] -> actions [B, A] in [-1, 1]: the best ones, or drawn ones (chunks:
        [B, T, A])."""

    @abstractmethod
    def _propose(self, inputs: Obs, n: int, generator: torch.Generator | None) -> torch.Tensor:
        """Inputs [B, ...] -> n candidates of each row, [B, n, A] in [-1, 1] (chunks:
        [B, n, T, A])."""

    def network_pass(self, inputs: Obs) -> Any:
        """Run the network on inputs [B, ...] without drawing; used to measure memory."""
        return self(inputs)

    @property
    def fit_samples(self) -> int:
        """Demonstrated steps that :meth:`fit` needs (0: all)."""
        return 0

    def fit(self, batches: Iterable[Any]) -> None:
        """Take statistics from batches of demonstrations; by default does nothing."""

    def graphs(self) -> Graphs:
        """What can be exported of it, by name (``networks.exported``), or why it cannot."""
        chunks = " over chunks of actions" if self.chunked else ""
        return {"action": f"{type(self).__name__}{chunks} has no graph to export"}

    # ------------------------------------------------------------- acting

    @torch.no_grad()
    def act(
        self,
        obs: Obs,
        *,
        eval_mode: bool = True,
        cpu: bool = True,
        generator: torch.Generator | None = None,
    ) -> torch.Tensor:
        """Action float32 [A], or [B, A] for batched observations; on the CPU if ``cpu``.

        Draws come from ``generator`` (default: the policy's own). Raises RuntimeError while
        the module is in training mode (dropout would act), KeyError and ValueError for missing
        and misshapen observations.
        """
        self._require_eval("act")
        inputs, batched = self._read(obs)
        if self.chunked:
            decide = partial(self._act, greedy=eval_mode, generator=generator)
            # 0 is no number of proposals
            action = self.player.play(inputs, 0, lambda some: decide(some).unsqueeze(1)).squeeze(1)
        else:
            action = self._act(inputs, eval_mode, generator)
        if not batched:
            action = action.squeeze(0)
        return action.cpu() if cpu else action

    @torch.no_grad()
    def act_chunk(
        self, obs: Obs, *, eval_mode: bool = True, generator: torch.Generator | None = None
    ) -> torch.Tensor:
        """All that is decided for an observation: float32 [T, A], or [B, T, A] for batched ones,
        on the CPU; T is 1 for a policy without chunks. Errors as :meth:`act`."""
        self._require_eval("act_chunk")
        inputs, batched = self._read({k: v for k, v in obs.items() if k != CLOCK})
        actions = self._act(inputs, eval_mode, generator)
        actions = (actions if self.chunked else actions.unsqueeze(1)).cpu()
        return actions if batched else actions.squeeze(0)

    @torch.no_grad()
    def propose(
        self,
        obs: Obs,
        n: int,
        *,
        horizon: int | None = None,
        generator: torch.Generator | None = None,
    ) -> torch.Tensor:
        """Candidate actions float32 [B, n, A] for batched observations; errors as :meth:`act`.

        With a ``horizon`` h, candidates for this and the next h - 1 steps, [B, n, h * A]: new ones,
        whatever is being played. ValueError if the policy's chunks are shorter.
        """
        self._require_eval("propose")
        if n < 1:
            raise ValueError(f"propose: n must be at least 1, got {n}")
        inputs, batched = self._read(obs)
        if not batched:
            raise ValueError("propose needs batched observations")
        if horizon is not None:
            return self._proposed(inputs, n, horizon, generator)
        if not self.chunked:
            return self._propose(inputs, n, generator)
        return self.player.play(inputs, n, lambda some: self._propose(some, n, generator))

    def _proposed(
        self, inputs: Obs, n: int, horizon: int, generator: torch.Generator | None
    ) -> torch.Tensor:
        rows = {k: v for k, v in inputs.items() if k != CLOCK}
        actions = self._propose(rows, n, generator)
        actions = actions if self.chunked else actions.unsqueeze(2)
        if actions.shape[2] < horizon:
            raise ValueError(
                f"{type(self).__name__}: proposes chunks of {actions.shape[2]}, expected at least "
                f"{horizon}"
            )
        return actions[:, :, :horizon].flatten(2)

    # ------------------------------------------------------------- chunks

    @property
    def chunk_length(self) -> int | None:
        """Steps whose actions it decides on at once; None: unknown."""
        return 1

    @property
    def needs_clock(self) -> bool:
        """Whether several actions of a chunk are played, so that observations must have CLOCK."""
        return self.player.needs_clock

    def memory_state(self) -> dict[str, Any]:
        """The chunks that are being played, as plain data and tensors."""
        return self.player.state_dict()

    def load_memory_state(self, state: Mapping[str, Any]) -> None:
        """Inverse of :meth:`memory_state`."""
        self.player.load_state_dict(state)

    # ------------------------------------------------------------- random numbers

    def seed(self, seed: int) -> None:
        """Seed the policy's own generator (for training, and for acting without another)."""
        self._seed, self._rng = seed, None

    @property
    def generator(self) -> torch.Generator:
        """The policy's own generator, on the device of its weights."""
        device = self._device
        if self._rng is None or self._rng.device != device:
            self._rng = torch.Generator(device).manual_seed(self._seed)
        return self._rng

    def rng_for(self, generator: torch.Generator | None) -> torch.Generator:
        """The generator to draw from (default: the policy's own), on the weights' device."""
        return self.generator if generator is None else generator_on(self._device, generator)

    def rng_state(self) -> dict[str, Any]:
        """State of the policy's own generator."""
        return {"generator": self.generator.get_state()}

    def set_rng_state(self, state: dict[str, Any]) -> None:
        """Inverse of :meth:`rng_state`, also for a state from another device; an empty state,
        from a policy that draws nothing, is ignored."""
        if state:
            restore_generator(self.generator, state["generator"])

    def moved(self, state: dict[str, Any]) -> str:
        """The message if :meth:`rng_state` comes from another kind of device, else ""."""
        return other_device(self.generator, state["generator"]) if state else ""

    # ------------------------------------------------------------- bookkeeping

    @property
    def _device(self) -> torch.device:
        return next(self.parameters()).device

    def _read(self, obs: Obs) -> tuple[Obs, bool]:
        """The inputs only, batched and on the weights' device, and whether they came batched."""
        device = self._device
        specs = self.input_specs()
        who = type(self).__name__
        inputs = {k: torch.as_tensor(require_key(obs, k, who)).to(device) for k in specs}
        batched = {x.dim() == len(specs[k].shape) + 1 for k, x in inputs.items()}
        for key, x in inputs.items():
            shape = specs[key].shape
            if tuple(x.shape[-len(shape) :]) != shape or x.dim() > len(shape) + 1:
                raise ValueError(
                    f"{who}: obs['{key}'] must be {list(shape)} or [B, ...] of that, "
                    f"got {list(x.shape)}"
                )
        if len(batched) != 1:
            raise ValueError(f"{who}: some observations have a batch axis and some do not")
        if self.needs_clock and CLOCK in obs:
            inputs[CLOCK] = torch.as_tensor(obs[CLOCK])
        if batched == {True}:
            return inputs, True
        return {k: x.unsqueeze(0) for k, x in inputs.items()}, False

    def _require_eval(self, what: str) -> None:
        if self.training:
            raise RuntimeError(f"{type(self).__name__}.{what} needs eval mode: call .eval() first")
