"""Base of policies that normalise their data; the statistics are stored in the weights.

A policy reads ``obs["state"]`` [B, T * S] or a camera's images uint8 [B, T * 3, H, W], newest
step first, as everywhere in this framework; the networks get the T steps oldest first. Actions
are normalised for the network and clipped to [-1, 1] on the way out. All statistics are
buffers, so a checkpoint is self-contained.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import nn

from bc.base import BasePolicy, PolicyConfig, PolicyInputs, batch_action
from common_utils.chunks import ChunkConfig, ChunkPlayer
from common_utils.config_types import Flag
from common_utils.ibrl_utils import unstack_obs
from common_utils.ranges import NotNegative, NotNegativeNumber
from common_utils.specs import ArraySpec, Obs, SpecError
from networks.exported import Port, input_ports, statistics
from networks.ibc.pixel import FrameStack
from networks.normalizer import MIN_SCALE, AffineNormalizer, Floor, divisors, still_dims


@dataclass
class NormConfig:
    """How observations and actions are normalised (docs/reference/ibc.md#data)."""

    # 1: the actions' range becomes [-1, 1]; 0: their mean 0 and standard deviation 1
    min_max_actions: Flag = 0
    # 1: divide by the square root of the standard deviation
    use_sqrt_std: Flag = 0
    # statistics come from this many shuffled samples; 0: from all
    num_samples: NotNegative = 0
    # observations: lower bound of the standard deviation, so that dimensions that hardly vary
    # in the data are not blown up (0: as published)
    min_std: NotNegativeNumber = 0.0
    # divisor of a dimension that is constant in the data. safe: its own size, so that it stays
    # a small number; published: 1.2e-7, which turns a deviation of 1e-6 into 8
    floor: Floor = "safe"


@dataclass
class ChunkedConfig(PolicyConfig):
    """Base of the configurations of these policies, which can decide on chunks of actions."""

    # chunks of actions
    chunk: ChunkConfig = field(default_factory=ChunkConfig, kw_only=True)

    @property
    def horizon(self) -> int:
        """See :class:`PolicyConfig`."""
        return self.chunk.length


class FrameStatistics:
    """Mean and population standard deviation of single frames, updated batch by batch (Chan).

    Per dimension of a state, per colour of uint8 images (as 0..1).
    """

    def __init__(self) -> None:
        self.count = 0
        self.mean = self.squares = torch.zeros(1, dtype=torch.float64)

    def add(self, stacked: torch.Tensor, stack: int) -> None:
        """Count every frame of float [B, stack * S] or uint8 [B, stack * C, H, W]."""
        frames = stacked.unflatten(1, (stack, -1)).flatten(0, 1)
        if frames.dim() > 2:
            frames = frames.float().div_(255).flatten(2)
            count = frames.shape[0] * frames.shape[2]
            mean = (
                frames.double().mean((0, 2)) if count < 2**16 else frames.mean(2).double().mean(0)
            )
            centred = frames - mean.float()[:, None]
            squares = centred.square_().mean(2).double().sum(0) * frames.shape[2]
        else:
            count = frames.shape[0]
            mean = frames.double().mean(0)
            squares = (frames.double() - mean).square().sum(0)
        total = self.count + count
        delta = mean - self.mean
        self.squares = self.squares + squares + delta.square() * (self.count * count / total)
        self.mean = self.mean + delta * (count / total)
        self.count = total

    def mean_and_std(self) -> tuple[torch.Tensor, torch.Tensor]:
        """float64 [S] or [C]; SpecError if there are no frames, or NaN or infinity in them."""
        std = (self.squares / max(self.count, 1)).sqrt()
        if self.count == 0 or not bool(torch.isfinite(self.mean + std).all()):
            raise SpecError(f"statistics of {self.count} observations: need finite values")
        return self.mean, std


def shown_ranges(numbers: Sequence[int]) -> str:
    """Ascending numbers in few words: "0, 3-6"."""
    runs: list[list[int]] = []
    for n in numbers:
        if runs and n == runs[-1][-1] + 1:
            runs[-1][1:] = [n]
        else:
            runs.append([n])
    return ", ".join("-".join(map(str, run)) for run in runs)


class NormalizedPolicy(BasePolicy):
    """Base of the policies of Implicit BC: explicit (MSE, MDN) and energy-based.

    Args:
        obs_key: "state", or the camera.
        obs_shape: (T * S,), the stacked state, or (T * 3, H, W), the stacked images.
        stack: T.
        action_dim: A.
        cfg: a ``config_class``, which has a field ``norm``; None: its defaults.

    The networks and their samplers know an action of ``width`` W: A numbers, or the T * A of a
    chunk of ``cfg.chunk.length`` steps, the first step's first.
    """

    config_class: ClassVar[type[ChunkedConfig]]
    cfg: Any

    def __init__(
        self,
        obs_key: str,
        obs_shape: Sequence[int],
        stack: int,
        action_dim: int,
        cfg: Any = None,
    ) -> None:
        super().__init__()
        self.cfg = cfg if cfg is not None else self.config_class()
        if len(obs_shape) not in (1, 3) or obs_shape[0] % stack:
            raise ValueError(
                f"{type(self).__name__}: needs states [S] or images [3, H, W], stacked {stack} "
                f"times along the first axis, got {tuple(obs_shape)}"
            )
        self.obs_key, self.obs_shape, self.stack = obs_key, tuple(obs_shape), stack
        self.pixels = len(obs_shape) == 3
        self.action_dim, self.norm = action_dim, self.cfg.norm
        length = self.cfg.chunk.length
        self.width, self.chunked = action_dim * length, length > 1
        self.player = ChunkPlayer(self.cfg.chunk.execute)
        # networks for images hold their own normaliser
        self.obs_norm = None if self.pixels else AffineNormalizer(obs_shape[0] // stack)
        self.act_norm = AffineNormalizer(action_dim)
        self.net: Any = self.make_net()

    @abstractmethod
    def make_net(self) -> nn.Module:
        """The network over normalised states [B, T * S] or over images [B, T, 3, H, W]."""

    @classmethod
    def build(cls, inputs: PolicyInputs, cfg: Any) -> NormalizedPolicy:
        """Build from the state, or the one camera's images."""
        return cls(inputs.key, inputs.obs_shape, inputs.stack, inputs.action_dim, cfg)

    @property
    def chunk_length(self) -> int:
        """``cfg.chunk.length``."""
        return int(self.cfg.chunk.length)

    def input_specs(self) -> dict[str, ArraySpec]:
        """The state, or the camera's images."""
        return {self.obs_key: ArraySpec(self.obs_shape, "uint8" if self.pixels else "float32")}

    # ------------------------------------------------------------- statistics

    @property
    def fit_samples(self) -> int:
        """``norm.num_samples``."""
        return self.norm.num_samples

    def fit(self, batches: Iterable[Any]) -> None:
        """Take the normalisers' statistics from batches (``obs`` stacked, ``action`` [B, A]).

        Every step of a history counts, as in the original.
        """
        actions, frames = [], FrameStatistics()
        for batch in batches:
            action = batch_action(batch)
            actions.append(action[:, 0] if self.chunked else action)  # each step's own
            frames.add(batch.obs[self.obs_key], self.stack)
        self.notes = [
            *self._still_note("action", "dimensions", self.fit_actions(torch.cat(actions))),
            *self._fit_frames(frames),
        ]

    def _fit_frames(self, frames: FrameStatistics) -> list[str]:
        """Fit the observation normaliser; returns notes on what does not move."""
        mean, std = frames.mean_and_std()
        std, norm = std.clamp(min=self.norm.min_std), self.norm
        if self.obs_norm is not None:
            still = self.obs_norm.set(mean, std, sqrt_std=bool(norm.use_sqrt_std), floor=norm.floor)
            return self._still_note(f"observation '{self.obs_key}'", "dimensions", still)
        dims = still_dims(mean, std)
        scale = divisors(mean, std.sqrt() if norm.use_sqrt_std else std, dims, norm.floor)
        for module in self.modules():
            if isinstance(module, FrameStack):
                module.mean.copy_(mean)
                module.std.copy_(scale)
        still = dims.nonzero().flatten().tolist()
        return self._still_note(f"observation '{self.obs_key}'", "colours", still)

    def _still_note(self, what: str, parts: str, still: list[int]) -> list[str]:
        if not still:
            return []
        scaled = (
            "centred and not scaled (norm.floor published scales them as published)"
            if self.norm.floor == "safe"
            else f"divided by {MIN_SCALE:.1e} (norm.floor published): whatever differs from the "
            "data by a rounding error decides the action"
        )
        return [f"{what}: {parts} {shown_ranges(still)} do not move in the data: {scaled}"]

    def fit_actions(self, actions: torch.Tensor) -> list[int]:
        """Fit the action normaliser to actions [N, A]; returns the dimensions that are still."""
        norm = self.norm
        if norm.min_max_actions:
            return self.act_norm.fit_min_max(actions, floor=norm.floor)
        return self.act_norm.fit_standard(
            actions, sqrt_std=bool(norm.use_sqrt_std), floor=norm.floor
        )

    def network_pass(self, inputs: Obs) -> Any:
        """See :class:`BasePolicy`."""
        return self.net(self.features(inputs))

    def features(self, obs: Obs) -> torch.Tensor:
        """The network's input, oldest step first: states normalised and flattened
        [B, T * S], or images [B, T, 3, H, W] unchanged.
        """
        steps = unstack_obs(obs[self.obs_key], self.stack)
        return steps if self.obs_norm is None else self.obs_norm(steps).flatten(1)

    def target(self, batch: Any, device: torch.device) -> torch.Tensor:
        """The batch's actions [B, W], normalised; ValueError for another width."""
        action = batch_action(batch).to(device)
        steps = [self.cfg.chunk.length, self.action_dim][not self.chunked :]
        if list(action.shape[1:]) != steps:
            shown = ", ".join(map(str, steps))
            raise ValueError(
                f"{type(self).__name__}.loss: actions must be [B, {shown}], "
                f"got {list(action.shape)}"
            )
        return self.act_norm.normalize(action).flatten(1)

    def to_env(self, action: torch.Tensor) -> torch.Tensor:
        """Normalised actions [..., W] as the environment takes them, within [-1, 1]: [..., A], or
        [..., T, A] of chunks."""
        if self.chunked:
            action = action.unflatten(-1, (-1, self.action_dim))
        return self.act_norm.denormalize(action).clamp(-1, 1)

    def ports(self) -> tuple[Port, ...]:
        """The inputs of its graphs."""
        return input_ports(
            self.input_specs(), {self.obs_key: statistics(self.obs_norm, self.stack)}
        )

    # ------------------------------------------------------------- acting

    @abstractmethod
    def _act_normalized(
        self, features: torch.Tensor, greedy: bool, rng: torch.Generator
    ) -> torch.Tensor:
        """Features [B, D] -> normalised actions [B, W]."""

    @abstractmethod
    def _propose_normalized(
        self, features: torch.Tensor, n: int, rng: torch.Generator
    ) -> torch.Tensor:
        """Features [B, D] -> n normalised actions of each row, [B, n, W]."""

    def _act(self, inputs: Obs, greedy: bool, generator: torch.Generator | None) -> torch.Tensor:
        rng = self.rng_for(generator)
        return self.to_env(self._act_normalized(self.features(inputs), greedy, rng))

    def _propose(self, inputs: Obs, n: int, generator: torch.Generator | None) -> torch.Tensor:
        rng = self.rng_for(generator)
        return self.to_env(self._propose_normalized(self.features(inputs), n, rng))
