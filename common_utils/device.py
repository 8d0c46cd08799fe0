"""Devices by their names in options (apart: environment workers must not pay for torch)."""

from __future__ import annotations

import re

import torch

from common_utils.errors import ConfigError


def resolve_device(name: str, field: str = "device") -> torch.device:
    """``auto`` (CUDA when present), ``cpu``, ``cuda``, ``cuda:N``; ConfigError if absent."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if not re.fullmatch(r"cpu|cuda(:\d+)?", name):
        raise ConfigError(f"{field}: expected auto, cpu, cuda or cuda:N, got {name!r}")
    device = torch.device(name)
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if count <= (device.index or 0):
            raise ConfigError(
                f"{field}: {name!r} was asked for, but torch sees {count} CUDA devices; "
                "use auto or cpu"
            )
    return device
