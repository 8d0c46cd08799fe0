"""Whether a run trained an agent or a BC policy, by its configuration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# The first of these keys found in cfg.yaml decides (both kinds have datasets). Runs of the original
# programs, and those from when there was one agent, have a section q_agent and no agent.
MARKS = {"rl": ("agent", "q_agent"), "bc": ("dataset",)}


def kind_in(tree: Mapping[str, Any]) -> str | None:
    """ "rl" or "bc"; None if a cfg.yaml decides neither."""
    return next((kind for kind, marks in MARKS.items() if tree.keys() & set(marks)), None)
