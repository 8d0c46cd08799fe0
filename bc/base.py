"""What all behaviour-cloning policies share: batching, devices, proposals and the loss."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import nn

from common_utils.ibrl_utils import require_key
from common_utils.specs import ArraySpec, Obs


def batch_action(batch: Any) -> torch.Tensor:
    """The actions [B, A] of a batch whose ``action`` is a tensor or {"action": tensor}."""
    action = batch.action
    return action["action"] if isinstance(action, dict) else action


def check_dropout(dropout: float) -> None:
    """ValueError unless a config's ``dropout`` is a probability below 1."""
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout: {dropout}, expected a probability in [0, 1)")


class BasePolicy(nn.Module, ABC):
    """What explicit and implicit policies share; implements ``common_utils.specs.Policy``.

    Subclasses say what they read (:meth:`input_specs`), act, propose and have a loss.
    """

    action_dim: int
    # act draws random numbers also in eval mode, and then takes ``generator=``
    stochastic_eval = False

    def __init__(self) -> None:
        super().__init__()
        # detached scalars of the last loss, by name, for the logs
        self.metrics: dict[str, torch.Tensor] = {}

    @abstractmethod
    def input_specs(self) -> dict[str, ArraySpec]:
        """The observations it reads, as an environment must deliver them (no batch axis)."""

    @abstractmethod
    def act(self, obs: Obs, *, eval_mode: bool = True, cpu: bool = True) -> torch.Tensor:
        """Action float32 [A], or [B, A] for batched observations; on the CPU if ``cpu``."""

    @abstractmethod
    def propose(self, obs: Obs, n: int) -> torch.Tensor:
        """Candidate actions float32 [B, n, A] for batched observations."""

    @abstractmethod
    def loss(self, batch: Any) -> torch.Tensor:
        """Training loss, a scalar with graph."""

    def rng_state(self) -> dict[str, Any]:
        """State of the policy's own generators; empty for one that draws nothing itself."""
        return {}

    def set_rng_state(self, state: dict[str, Any]) -> None:
        """Inverse of :meth:`rng_state`."""

    def _read(self, obs: Obs) -> tuple[Obs, bool]:
        """The inputs alone, on our device and batched, and whether they came batched."""
        device = next(self.parameters()).device
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
            raise ValueError(f"{who}: some observations have a batch axis and some have not")
        if batched == {True}:
            return inputs, True
        return {k: x.unsqueeze(0) for k, x in inputs.items()}, False

    def _require_eval(self, what: str) -> None:
        if self.training:
            raise RuntimeError(f"{type(self).__name__}.{what} needs eval mode: call .eval() first")


def check_proposal(n: int, batched: bool) -> None:
    """ValueError unless ``propose`` was asked for n >= 1 actions for batched observations."""
    if n < 1:
        raise ValueError(f"propose: n must be at least 1, got {n}")
    if not batched:
        raise ValueError("propose needs batched observations")


class ExplicitPolicy(BasePolicy):
    """A policy that maps an observation to one action; subclasses compute :meth:`forward`."""

    @abstractmethod
    def forward(self, obs: Obs) -> torch.Tensor:
        """Batched observations -> actions [B, A] in [-1, 1]."""

    def augment(self, obs: Obs) -> Obs:
        """Training-time view of the observations [B, ...]; the caller's dict is left alone."""
        return obs

    @torch.no_grad()
    def act(self, obs: Obs, *, eval_mode: bool = True, cpu: bool = True) -> torch.Tensor:
        """Action float32 [A], or [B, A] for batched observations; on the CPU if ``cpu``.

        The policy is deterministic, so ``eval_mode`` changes nothing. Raises RuntimeError
        while the module is in training mode (dropout would make it random).
        """
        self._require_eval("act")
        inputs, batched = self._read(obs)
        action = self(inputs).detach()
        if not batched:
            action = action.squeeze(0)
        return action.cpu() if cpu else action

    def propose(self, obs: Obs, n: int) -> torch.Tensor:
        """Candidates [B, n, A] for batched observations: the one action, n times."""
        check_proposal(n, True)
        action = self.act(obs, cpu=False)
        check_proposal(n, action.dim() == 2)
        return action.unsqueeze(1).expand(-1, n, -1)

    def loss(self, batch: Any) -> torch.Tensor:
        """Squared error summed over action dimensions, averaged over the batch (a scalar)."""
        inputs, _ = self._read(batch.obs)
        pred = self(self.augment(inputs))
        target = batch_action(batch).to(pred.device)
        if target.shape != pred.shape:
            raise ValueError(
                f"{type(self).__name__}.loss: actions must be {list(pred.shape)}, "
                f"got {list(target.shape)}"
            )
        return (pred - target).square().sum(1).mean()
