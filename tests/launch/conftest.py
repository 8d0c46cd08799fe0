"""A cheap program among those that a sweep may start."""

from __future__ import annotations

import pytest

from launch.programs import PROGRAMS, Program

PRETEND = Program("tests.launch.pretend_train", "workspace.bc_config", "bc")


@pytest.fixture
def pretend(monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of the program that only pretends to train."""
    rows = {**PROGRAMS, "pretend": PRETEND}
    modules = ("launch.programs", "launch.trials", "launch.attempt", "launch.sweep_file")
    for module in (*modules, "launch.sweep"):
        monkeypatch.setattr(f"{module}.PROGRAMS", rows)
    monkeypatch.setattr("launch.engines.local.memory_of", lambda trial: 1 << 20)
    return "pretend"
