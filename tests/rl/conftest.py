"""Fixtures of the agents' tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from networks.fast import table


@pytest.fixture
def without_kernels(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Compute as on a GPU, by torch's operations alone."""
    monkeypatch.setattr(table, "BACKENDS", ("plain",))
    table.rows.cache_clear()
    yield
    table.rows.cache_clear()
