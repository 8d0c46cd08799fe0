"""Devices by their names in options (apart: environment workers must not pay for torch)."""

from __future__ import annotations

import re

import torch

from common_utils import ranks
from common_utils.errors import ConfigError


def resolve_device(name: str, field: str = "device") -> torch.device:
    """``auto`` (CUDA when present), ``cpu``, ``cuda``, ``cuda:N``; ConfigError if absent.

    With several ranks (``common_utils.ranks``) each has the GPU of its number.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if not re.fullmatch(r"cpu|cuda(:\d+)?", name):
        raise ConfigError(f"{field}: expected auto, cpu, cuda or cuda:N, got {name!r}")
    device = torch.device(name)
    if device.type == "cuda" and ranks.world() > 1:
        if device.index is not None:
            raise ConfigError(
                f"{field}: {name}, expected auto, cpu or cuda with several ranks, of which each "
                "takes the GPU of its number"
            )
        device = torch.device("cuda", ranks.local_rank())
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if count <= (device.index or 0):
            raise ConfigError(
                f"{field}: '{device}' was asked for, but torch sees {count} CUDA devices; "
                "use auto or cpu"
            )
    return device
