"""The engines by name; a new one is a row."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common_utils.errors import ConfigError
from launch.engines.base import Engine

# name -> module and class; a module is imported when its engine is chosen
ENGINES: Mapping[str, tuple[str, str]] = {
    "local": ("launch.engines.local", "LocalEngine"),
    "slurm": ("launch.engines.slurm", "SlurmEngine"),
    "ray": ("launch.engines.ray", "RayEngine"),
}


def engine_class(name: str) -> Any:
    """The class of a row."""
    module, cls = ENGINES[name]
    return getattr(importlib.import_module(module), cls)


def make_engine(name: str, sweep: Path, settings: Mapping[str, str]) -> Engine:
    """The engine of a row; ConfigError for a setting that it does not have."""
    cls = engine_class(name)
    for key in settings:
        if key not in cls.SETTINGS:
            known = ", ".join(cls.SETTINGS) or "none"
            raise ConfigError(f"--engine_option: {key}: not one of engine {name}, expected {known}")
    engine: Engine = cls(sweep, settings)
    return engine
