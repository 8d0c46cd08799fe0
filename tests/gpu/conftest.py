"""Every test here takes a device: cpu, so that it runs everywhere, and cuda, marked ``gpu``."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(GPU)


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> Iterator[str]:
    """The device under test; on a GPU convolutions are computed in float32, not in TF32."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    yield request.param
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before
