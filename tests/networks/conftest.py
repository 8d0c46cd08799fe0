"""Fixtures of the tests of networks."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from common_utils import kernels


@pytest.fixture(params=["base", "v3", "v4"])
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Every instruction set that this CPU has."""
    best = kernels.isa()
    try:
        kernels.use(request.param)
    except ValueError:
        pytest.skip(f"this CPU has no {request.param}")
    yield request.param
    kernels.use(best)
