"""No operation of the seam is slow for the layout of an operand, on any back end.

Columns of a wider weight once sent oneDNN to its reference code, 500 times slower than dense
operands. Every operation runs here, forward and backward, with operands that are dense,
transposed, or have gaps between their rows.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest
import torch

from networks import fast
from networks.fast import choice

ROWS, IN, OUT, MEMBERS = 512, 121, 128, 4  # 121 columns: not a multiple of any vector's width
AT_MOST = 4.0  # times as long as dense operands
LAYOUTS = ("dense", "transposed", "padded")


@pytest.fixture(params=["mkl", "onednn", "kernels", "auto"])
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("IBRL_GEMM", request.param)
    fast.set_up()
    yield request.param
    choice.use(None)


def operand(layout: str, *shape: int) -> torch.Tensor:
    """Random numbers [..., rows, columns] in one of the layouts."""
    *outer, rows, columns = shape
    if layout == "transposed":
        return torch.randn(*outer, columns, rows).transpose(-1, -2)
    if layout == "padded":
        return torch.randn(*outer, rows, columns + 34)[..., :columns]
    return torch.randn(*shape)


Operation = Callable[..., torch.Tensor]
OPERATIONS: dict[str, tuple[Operation, tuple[int, ...], tuple[int, ...]]] = {
    "linear": (fast.linear, (ROWS, IN), (OUT, IN)),
    "ensemble_matmul": (fast.ensemble_matmul, (MEMBERS, ROWS, IN), (MEMBERS, IN, OUT)),
    "ensemble_matmul of shared rows": (fast.ensemble_matmul, (ROWS, IN), (MEMBERS, IN, OUT)),
}


def seconds(operation: Operation, x: torch.Tensor, w: torch.Tensor, out_layout: str) -> float:
    """CPU time of a forward and a backward pass, the shortest of several."""
    x, w = x.requires_grad_(), w.requires_grad_()
    best = float("inf")
    for _ in range(6):
        began = time.process_time()
        y = operation(x, w)
        torch.autograd.grad(y, (x, w), operand(out_layout, *y.shape))
        best = min(best, time.process_time() - began)
    return best


@pytest.mark.parametrize("name", OPERATIONS)
def test_layouts_cost_about_the_same(backend: str, name: str) -> None:
    operation, x_shape, w_shape = OPERATIONS[name]
    dense = seconds(operation, operand("dense", *x_shape), operand("dense", *w_shape), "dense")
    for x_layout in LAYOUTS:
        for w_layout in LAYOUTS:
            for out_layout in LAYOUTS:
                x, w = operand(x_layout, *x_shape), operand(w_layout, *w_shape)
                took = seconds(operation, x, w, out_layout)
                assert took < AT_MOST * dense, (
                    f"{name} on {backend}: {took / dense:.1f} x the time of dense operands with "
                    f"x {x_layout}, w {w_layout}, gradient {out_layout}"
                )
