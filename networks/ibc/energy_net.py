"""The contract of energy networks: what samplers, losses and the fast passes rely on."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

Kind = Literal["MLPDropout", "ResNetOrig", "ResNetPreActivation"]


@dataclass(frozen=True)
class Weights:
    """An energy network in the form of the fast passes; differentiable functions of the parameters.

    With x = encoded + w_a a, L layers and h_0..h_L their inputs and the last one's output,
    f = head . h_L + head_stream . s + const; s is the residual stream at the head.
    """

    kind: Kind
    w_a: Tensor  # [W, A]
    layers: tuple[Tensor, ...]  # each [W, W], out x in
    biases: tuple[Tensor, ...]  # each [W]
    head: Tensor  # [W]
    head_stream: Tensor | None  # [W]; pre-activation only
    const: Tensor  # []
    sigma: Tensor | None = None  # spectral norm of the first layer
    first_bias: Tensor | None = None  # added after the division by sigma

    def first(self, encoded: Tensor) -> Tensor:
        """The observation's share of the first layer's output, [B, W]."""
        if self.sigma is None or self.first_bias is None:
            return encoded
        return encoded / self.sigma + self.first_bias

    def tensors(self) -> list[Tensor | None]:
        """All tensors that a gradient is computed for."""
        return [self.w_a, self.head, self.head_stream, self.const, *self.layers, *self.biases]

    @staticmethod
    def of_tensors(kind: Kind, tensors: Sequence[Tensor | None]) -> Weights:
        """The weights with these :meth:`tensors`, without a graph."""
        w_a, head, head_stream, const, *rest = tensors
        assert w_a is not None and head is not None and const is not None  # see tensors()
        found = [t for t in rest if t is not None]
        half = len(found) // 2
        layers, biases = tuple(found[:half]), tuple(found[half:])
        return Weights(kind, w_a, layers, biases, head, head_stream, const)


class EnergyNet(nn.Module, ABC):
    """f(o, a), **minus** an energy: higher is better.

    Observations are encoded once, and many actions are scored against the code.
    """

    @abstractmethod
    def encode(self, obs: Tensor) -> Tensor:
        """A batch of observations -> their code [B, E]."""

    @abstractmethod
    def score(self, encoded: Tensor, actions: Tensor) -> Tensor:
        """encoded [B, E] and actions [B, N, A] -> f [B, N]; twice differentiable by actions."""

    def fast_weights(self) -> Weights | None:
        """The weights for the fast passes; None: they do not compute this network.

        Called once per evaluation: with spectral norm it does the power iterations of a call.
        """
        return None

    def forward(self, obs: Tensor, actions: Tensor) -> Tensor:
        """Observations and actions [B, N, A] -> f [B, N]."""
        return self.score(self.encode(obs), actions)
