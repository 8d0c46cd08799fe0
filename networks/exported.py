"""What of a policy or an agent can leave the program: functions of tensors, with named ports.

Policies and agents describe such functions (``graphs()``); ``workspace.onnx_file`` writes them. A
graph is deterministic and needs no environment: what is drawn or searched is not part of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from common_utils.specs import ArraySpec, Obs
from networks.normalizer import AffineNormalizer, Normalizer

BATCH = "batch"


@dataclass(frozen=True)
class Port:
    """An input or output: its shape with the batch axis, in which words are sizes that may vary."""

    name: str
    shape: tuple[int | str, ...]
    dtype: str = "float32"
    # mean and standard deviation of what the network was trained on, [last axis] each
    around: tuple[torch.Tensor, torch.Tensor] | None = None

    def example(self, sizes: Mapping[str, int], generator: torch.Generator) -> torch.Tensor:
        """A plausible value for these sizes: images uint8, indices 0, 1, ..., or normal numbers."""
        shape = [size if isinstance(size, int) else sizes[size] for size in self.shape]
        if self.dtype == "uint8":
            return torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
        if self.dtype == "int64":
            return torch.arange(shape[0])
        drawn = torch.randn(shape, generator=generator)
        return drawn if self.around is None else self.around[0] + self.around[1] * drawn


@dataclass(frozen=True)
class Graph:
    """A function from a dict of inputs to a tuple of outputs, and the modules that it uses."""

    run: Callable[[Obs], tuple[torch.Tensor, ...]]
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    parts: tuple[nn.Module, ...]
    # one line for the user: what is and what is not part of it
    note: str = ""
    # it takes the best of several: where two are equal, rounding decides
    chooses: bool = False
    # plain values that whoever runs it needs
    about: Mapping[str, Any] = field(default_factory=dict)


# a graph, or why there is none
Graphs = dict[str, Graph | str]


def input_ports(
    specs: Mapping[str, ArraySpec], around: Mapping[str, Any] | None = None
) -> tuple[Port, ...]:
    """A port for each observation, named by its key; ``around`` as in :class:`Port`."""
    known = around or {}
    return tuple(Port(k, (BATCH, *s.shape), s.dtype, known.get(k)) for k, s in specs.items())


def statistics(norm: nn.Module | None, stack: int = 1) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Mean and standard deviation of a normaliser of single steps, for ``stack`` steps."""
    if isinstance(norm, Normalizer):
        return norm.mean.repeat(stack).cpu(), norm.std.repeat(stack).cpu()
    if isinstance(norm, AffineNormalizer):
        return norm.offset.repeat(stack).cpu(), norm.scale.repeat(stack).cpu()
    return None


def action_graph(
    policy: nn.Module,
    act: Callable[[Obs], torch.Tensor],
    inputs: tuple[Port, ...],
    action_dim: int,
    note: str = "",
    chooses: bool = False,
) -> Graph:
    """The graph of a policy that maps observations to one action, ``act``."""
    outputs = (Port("action", (BATCH, action_dim)),)
    return Graph(lambda obs: (act(obs),), inputs, outputs, (policy,), note, chooses)
