"""Objects by name, for tables of things that are imported only when they are needed."""

from __future__ import annotations

import importlib
from typing import Any


def resolve(name: str) -> Any:
    """The object named "module:attribute"; imports the module."""
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(module), attribute)
