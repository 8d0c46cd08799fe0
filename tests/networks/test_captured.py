"""What surrounds a captured function: fixed inputs, copies of results, one graph per shape."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from networks.captured import WARM_UP, Captured, joined, split


class Pair(NamedTuple):
    a: torch.Tensor
    b: torch.Tensor | None


@dataclass(frozen=True)
class Rows:
    obs: dict[str, torch.Tensor]
    weight: float


class OnCpu(Captured):
    """Records what would be captured: the function with its inputs in fixed places."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__(function)
        self.recorded = 0

    def _warm_up(self, args: tuple[Any, ...]) -> Any:
        return self._function(*args)

    def _record(self, run: Callable[[], Any]) -> Callable[[], Any]:
        self.recorded += 1
        out = torch.zeros(())

        def repeat() -> Any:  # results stay in the same place, as a CUDA graph's do
            out.copy_(run()["sum"])
            return {"sum": out}

        return repeat


def test_arguments_are_split_and_joined() -> None:
    x, y, z = torch.zeros(2), torch.ones(3), torch.ones(1)
    args = (Pair(x, None), Rows({"state": y, "prop": z}, 0.5), True, None)
    tensors: list[torch.Tensor] = []
    key = split(args, tensors)
    assert [id(t) for t in tensors] == [id(x), id(y), id(z)]
    pair, rows, *rest = joined(args, iter([x + 1, y + 1, z + 1]))
    assert isinstance(pair, Pair) and pair.b is None and torch.equal(pair.a, torch.ones(2))
    assert rows.weight == 0.5 and torch.equal(rows.obs["prop"], torch.full((1,), 2.0))
    assert rest == [True, None]
    others = [
        (Pair(torch.zeros(3), None), *args[1:]),
        (Pair(x.double(), None), *args[1:]),
        (*args[:2], False, None),
        (args[0], Rows(args[1].obs, 0.25), True, None),
    ]
    assert len({key, *(split(other, []) for other in others)}) == 5
    assert split((Pair(x + 5, None), *args[1:]), []) == key


def test_each_call_computes_once_with_its_own_numbers() -> None:
    total = torch.zeros(())

    def add(rows: Rows, sign: int) -> dict[str, torch.Tensor]:
        total.add_(sign * rows.weight * rows.obs["x"].sum())
        return {"sum": total.clone()}

    run, expected, results = OnCpu(add), 0.0, []
    for i in range(2 * WARM_UP + 2):
        results.append(run(Rows({"x": torch.full((2,), float(i))}, 0.5), 1))
        expected += i
        assert float(total) == expected
    assert run.recorded == 1
    assert [float(r["sum"]) for r in results] == [0, 1, 3, 6, 10, 15, 21, 28]
    for _ in range(WARM_UP + 1):
        run(Rows({"x": torch.ones(4)}, 0.5), -1)
    assert run.recorded == 2 and float(total) == expected - 2 * (WARM_UP + 1)
