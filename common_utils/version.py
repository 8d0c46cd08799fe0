"""The version of the program: the only place that states it (``pyproject.toml`` reads it)."""

from __future__ import annotations

__version__ = "0.1.0"
