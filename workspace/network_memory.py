"""The least memory that a run's networks take in training, computed before they are built.

The networks are built on torch's "meta" device, where tensors have shapes and no storage. Only
memory that is certainly needed is counted: weights with gradients and Adam's moments, copies of
weights, batches, and outputs of layers. A run that passes may still be too large.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from pyrallis.utils import deflatten, flatten
from torch import nn

from bc.base import BasePolicy
from common_utils import run_config
from common_utils.device import resolve_device
from common_utils.resources import ResourceError, available_memory, format_bytes
from common_utils.run_config import ConfigError
from common_utils.specs import EnvSpec
from networks.mlp import _MultiLinear
from workspace.bc_config import MainConfig as BcConfig
from workspace.build_agent import agent_inputs
from workspace.build_policy import build_policy, naming_fields, without_storage
from workspace.rl_config import MainConfig as RlConfig

NUMBER = 4  # bytes of a float32
TRAINED = 4  # a weight, its gradient and Adam's two moments
FREE = 0.95  # share of the free memory that a run may take


@dataclass(frozen=True)
class Footprint:
    """Bytes by their use."""

    weights: int
    batch: int
    layers: int

    @property
    def total(self) -> int:
        return self.weights + self.batch + self.layers

    def __str__(self) -> str:
        parts = ((f.name, getattr(self, f.name)) for f in fields(self))
        return ", ".join(f"{name} {format_bytes(n)}" for name, n in parts)


# ------------------------------------------------------------------------- counting


def _weights(module: nn.Module, copies: int) -> int:
    return NUMBER * copies * sum(p.numel() for p in module.parameters())


def _outputs(module: nn.Module) -> list[int]:
    """How many numbers each linear layer outputs for one row."""
    out = []
    for m in module.modules():
        if isinstance(m, nn.Linear):
            out.append(m.out_features)
        elif isinstance(m, _MultiLinear):
            out.append(m.weights.shape[0] * m.weights.shape[2])
    return out


def _image_outputs(module: nn.Module, forward: Callable[[], Any]) -> int:
    """How many numbers all convolutions and linear layers of ``module`` output in ``forward``."""
    counted = 0

    def count(_module: nn.Module, _inputs: Any, output: torch.Tensor) -> None:
        nonlocal counted
        counted += output.numel()

    layers = [m for m in module.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    handles = [m.register_forward_hook(count) for m in layers]
    with torch.no_grad():
        forward()
    for handle in handles:
        handle.remove()
    return counted


# ------------------------------------------------------------------------- policies, agents


def policy_footprint(cfg: BcConfig) -> Footprint:
    """The least memory for training the policy of a filled-in config."""
    with without_storage():
        policy = build_policy(cfg)
        images = _convolutions(policy)
    section, outputs = cfg.own_section, _outputs(policy)
    rows, acting = section.rows_per_sample, section.rows_when_acting
    # a graph holds the outputs of all layers, but kernels recompute them for many candidates
    trained = rows * max(outputs) if rows > 1 else sum(outputs)
    layers = max(cfg.batch_size * (trained + images), acting * max(outputs))
    batch = cfg.batch_size * sum(s.nbytes for s in policy.input_specs().values())
    weights = _weights(policy, TRAINED + (cfg.ema > 0))
    return Footprint(weights, batch, NUMBER * layers)


def _convolutions(policy: BasePolicy) -> int:
    """Outputs of the layers that see an image, for one sample."""
    specs = policy.input_specs()
    if not any(len(s.shape) == 3 for s in specs.values()):
        return 0
    obs = {k: torch.zeros(1, *s.shape, dtype=_dtype(s.dtype)) for k, s in specs.items()}
    return _image_outputs(policy, lambda: policy.network_pass(obs))


def agent_footprint(
    cfg: RlConfig, spec: EnvSpec, num_bc_policies: int, scale: float = 1.0
) -> Footprint:
    """The least memory for training the agent, without its replay and its BC policies.

    ``scale``: factor on the image size of ``spec``.
    """
    inputs, agent_cfg = agent_inputs(cfg, spec), cfg.agent_cfg
    shape = inputs.obs_shape
    if inputs.camera:
        shape = (shape[0], *(round(n * scale) for n in shape[1:]))
    with naming_fields(cfg.agent_kind.section), without_storage():
        networks = cfg.agent_kind.networks(replace(inputs, obs_shape=shape), agent_cfg)
        parts = networks.trained
        images = 0
        if encoder := parts.get("encoder"):
            image = torch.zeros(1, *shape, dtype=torch.uint8)
            images = _image_outputs(encoder, lambda: encoder(image))
    copies = TRAINED + (2 if cfg.add_bc_loss else 0)  # the reference agent's, targets included
    weights = sum(_weights(m, copies + (k in networks.targets)) for k, m in parts.items())
    outputs = {k: _outputs(m) for k, m in parts.items() if k != "encoder"}
    candidates = 1 + agent_cfg.num_bc_samples * num_bc_policies
    valued = candidates * max(outputs.get("critic", [0]))
    layers = max(sum(map(sum, outputs.values())) + images, valued)
    seen = math.prod(shape) * (NUMBER if cfg.use_state else 1)
    batch = 2 * cfg.batch_size * seen * (1 + cfg.replay_prefetch)  # observations and next ones
    return Footprint(weights, batch, NUMBER * cfg.batch_size * layers)


def _dtype(name: str) -> torch.dtype:
    return torch.uint8 if name == "uint8" else torch.float32


# ------------------------------------------------------------------------- checking


def check_policy(cfg: BcConfig) -> Footprint:
    """The policy's memory; if there is too little, a ResourceError names the field to lower."""
    section = f"{type(cfg).sections()[cfg.kind].name}."
    return _check(cfg, policy_footprint, cfg.device, "device", (section, "batch_size"))


def check_agent(cfg: RlConfig, spec: EnvSpec, num_bc_policies: int = 0) -> Footprint:
    """The agent's memory; if there is too little, a ResourceError names the field to lower."""

    def footprint(other: RlConfig) -> Footprint:
        scale = (other.rl_image_size or 1) / (cfg.rl_image_size or 1)
        return agent_footprint(other, spec, num_bc_policies, scale)

    section = f"{cfg.agent_kind.section}."
    sizes = (section, "batch_size", "rl_image_size", "replay_prefetch")
    return _check(cfg, footprint, cfg.agent_cfg.device, section + "device", sizes)


def _check(
    cfg: Any, footprint: Callable[[Any], Footprint], device: str, field: str, sizes: tuple[str, ...]
) -> Footprint:
    where = resolve_device(device, field)
    free = available_memory() if where.type == "cpu" else torch.cuda.mem_get_info(where)[0]
    need = footprint(cfg)
    if need.total <= FREE * free:
        return need
    name, value, default = _largest(cfg, footprint, sizes)
    usual = "" if value == default else f" (default {default})"
    raise ResourceError(
        f"{name}: {value}, expected less{usual}: training takes at least "
        f"{format_bytes(need.total)} ({need}), but {format_bytes(free)} of memory are available"
    )


def _largest(
    cfg: Any, footprint: Callable[[Any], Footprint], sizes: tuple[str, ...]
) -> tuple[str, Any, Any]:
    """The field of ``sizes`` (prefixes) whose default needs least: (name, value, default)."""
    flat = flatten(run_config.to_dict(cfg))
    found = ("batch_size", flat["batch_size"], 256)
    least = None
    for name, _, default, _ in run_config.describe(type(cfg)):
        value = flat.get(name)
        if not name.startswith(sizes) or not isinstance(value, (int, float)) or value == default:
            continue
        try:
            other = run_config.from_dict(type(cfg), deflatten({**flat, name: default}))
            total = footprint(other).total
        except (ConfigError, ValueError):  # inconsistent with the other fields
            continue
        if least is None or total < least:
            least, found = total, (name, value, default)
    return found
