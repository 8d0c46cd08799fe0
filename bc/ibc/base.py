"""What the policies of Implicit BC share: normalisers, history, random numbers, acting.

A state policy reads ``obs["state"]`` [B, T * S], newest step first as everywhere in this
framework; the networks get the T steps oldest first, normalised and flattened. Actions are
normalised for the network and clipped to [-1, 1] on the way out. All statistics are buffers,
so a checkpoint is self-contained.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from bc.base import BasePolicy, batch_action, check_proposal
from common_utils.config_types import Flag
from common_utils.specs import ArraySpec, Obs
from networks.normalizer import AffineNormalizer


@dataclass
class NormConfig:
    """How observations and actions are normalised (specification 4)."""

    # 1: the actions' range becomes [-1, 1]; 0: their mean 0 and standard deviation 1
    min_max_actions: Flag = 0
    # 1: divide by the square root of the standard deviation
    use_sqrt_std: Flag = 0
    # statistics are those of the first so many shuffled samples; 0: of all
    num_samples: int = 0

    def __post_init__(self) -> None:
        if self.num_samples < 0:
            raise ValueError(f"num_samples: {self.num_samples}, expected 0 or more")


class IbcPolicy(BasePolicy):
    """Base of the EBM, MSE and MDN policies.

    Args:
        obs_key: "state".
        obs_shape: (T * S,), the stacked state.
        stack: T.
        action_dim: A.
    """

    def __init__(
        self,
        obs_key: str,
        obs_shape: Sequence[int],
        stack: int,
        action_dim: int,
        norm: NormConfig,
    ) -> None:
        super().__init__()
        if len(obs_shape) != 1 or obs_shape[0] % stack:
            raise ValueError(
                f"{type(self).__name__}: needs a flat state of {stack} steps, "
                f"got {tuple(obs_shape)}"
            )
        self.obs_key, self.obs_shape, self.stack = obs_key, tuple(obs_shape), stack
        self.action_dim, self.norm = action_dim, norm
        self.obs_norm = AffineNormalizer(obs_shape[0] // stack)
        self.act_norm = AffineNormalizer(action_dim)
        self._seed = 0
        self._rng: torch.Generator | None = None

    @property
    def obs_dim(self) -> int:
        """Width of what the network gets."""
        return self.obs_shape[0]

    def input_specs(self) -> dict[str, ArraySpec]:
        """The state."""
        return {self.obs_key: ArraySpec(self.obs_shape)}

    # ------------------------------------------------------------- random numbers

    def seed(self, seed: int) -> None:
        """Start the policy's own generator (training draws, and acting without one given)."""
        self._seed, self._rng = seed, None

    @property
    def generator(self) -> torch.Generator:
        """The policy's own generator, on the device of its weights."""
        device = self.act_norm.offset.device
        if self._rng is None or self._rng.device != device:
            self._rng = torch.Generator(device).manual_seed(self._seed)
        return self._rng

    def rng_state(self) -> dict[str, Any]:
        """State of the own generator."""
        return {"generator": self.generator.get_state()}

    def set_rng_state(self, state: dict[str, Any]) -> None:
        """Inverse of :meth:`rng_state`."""
        self.generator.set_state(state["generator"].cpu())

    # ------------------------------------------------------------- statistics

    def fit(self, obs: Obs, actions: torch.Tensor) -> None:
        """Take the normalisers' statistics from stacked observations and actions [N, A].

        Every step of a history counts, as in the original.
        """
        self.obs_norm.fit_standard(self._frames(obs), sqrt_std=bool(self.norm.use_sqrt_std))
        if self.norm.min_max_actions:
            self.act_norm.fit_min_max(actions)
        else:
            self.act_norm.fit_standard(actions, sqrt_std=bool(self.norm.use_sqrt_std))

    def _frames(self, obs: Obs) -> torch.Tensor:
        return obs[self.obs_key].reshape(-1, self.obs_norm.offset.numel())

    def features(self, obs: Obs) -> torch.Tensor:
        """What the network gets: normalised, oldest step first, [B, T * S]."""
        steps = obs[self.obs_key].unflatten(1, (self.stack, -1)).flip(1)
        return self.obs_norm(steps).flatten(1)

    def target(self, batch: Any, device: torch.device) -> torch.Tensor:
        """The batch's actions [B, A], normalised; ValueError for another width."""
        action = batch_action(batch).to(device)
        if action.dim() != 2 or action.shape[1] != self.action_dim:
            raise ValueError(
                f"{type(self).__name__}.loss: actions must be [B, {self.action_dim}], "
                f"got {list(action.shape)}"
            )
        return self.act_norm.normalize(action)

    def to_env(self, action: torch.Tensor) -> torch.Tensor:
        """Normalised actions [..., A] as the environment takes them, within [-1, 1]."""
        return self.act_norm.denormalize(action).clamp(-1, 1)

    # ------------------------------------------------------------- acting

    @abstractmethod
    def _act(self, features: torch.Tensor, greedy: bool, rng: torch.Generator) -> torch.Tensor:
        """Features [B, D] -> normalised actions [B, A]."""

    @abstractmethod
    def _propose(self, features: torch.Tensor, n: int, rng: torch.Generator) -> torch.Tensor:
        """Features [B, D] -> n normalised actions of each row, [B, n, A]."""

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

        Draws come from ``generator`` (default: the policy's own). Raises RuntimeError in
        training mode.
        """
        self._require_eval("act")
        inputs, batched = self._read(obs)
        rng = self.generator if generator is None else generator
        action = self.to_env(self._act(self.features(inputs), eval_mode, rng))
        if not batched:
            action = action.squeeze(0)
        return action.cpu() if cpu else action

    @torch.no_grad()
    def propose(
        self, obs: Obs, n: int, *, generator: torch.Generator | None = None
    ) -> torch.Tensor:
        """Candidates float32 [B, n, A] in [-1, 1] for batched observations."""
        self._require_eval("propose")
        inputs, batched = self._read(obs)
        check_proposal(n, batched)
        rng = self.generator if generator is None else generator
        return self.to_env(self._propose(self.features(inputs), n, rng))
