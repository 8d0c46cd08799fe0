"""Who multiplies matrices is measured once, kept, and named by whoever wants another."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from common_utils.errors import UserError
from networks import fast
from networks.fast import choice, measure, products


@pytest.fixture(autouse=True)
def anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A machine on which nothing has been measured, and afterwards what was before."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("IBRL_GEMM", raising=False)
    before = choice.current()
    choice.use(None)
    yield
    choice.use(before)


def kept() -> Path:
    (path,) = (Path(os.environ["XDG_CACHE_HOME"]) / "ibrl").iterdir()
    return path


def test_everything_is_measured_in_under_two_seconds() -> None:
    took = []
    for _ in range(3):  # other work on the machine makes it slower, never faster
        began = time.process_time()
        found = measure.measured()
        took.append(time.process_time() - began)
    assert min(took) < 2.0 * torch.get_num_threads()
    assert choice.is_table(found.table)
    for kind, parts in choice.WAYS.items():
        for part, ways in parts.items():
            times = found.times[kind][part]
            assert set(times) <= set(ways) and all(ms > 0 for ms in times.values())
            assert times[found.table[kind][part]] <= min(times.values()) / measure.CLEARLY_FASTER


PROGRAM = """
import json
from networks import fast
from networks.fast import choice
fast.set_up()
print(json.dumps(choice.current()))
"""


def test_later_programs_use_what_the_first_measured() -> None:
    fast.set_up()
    other = {kind: dict(parts) for kind, parts in choice.current().items()}
    other["tall layer"]["input gradient"] = "mkl"
    other["layer"]["weight gradient"] = "onednn"
    kept().write_text(json.dumps({"times": {}, "table": other}))
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout) == other


def test_damaged_results_are_measured_again() -> None:
    path = measure.cache_file()
    path.parent.mkdir(parents=True)
    for content in ("", "{", "[]", '{"times": {}, "table": {"layer": 3}}', "\0"):
        path.write_text(content)
        assert measure._read(path) is None
    fast.set_up()
    assert choice.is_table(json.loads(kept().read_text())["table"])


def test_a_home_that_cannot_be_written_to_is_no_obstacle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    found = measure.measured()
    assert found.path is None and choice.is_table(found.table)


def test_only_the_clearly_faster_replaces_the_established() -> None:
    ways = ("mkl", "onednn")
    assert measure._fastest({"mkl": 1.0, "onednn": 0.97}, ways) == "mkl"
    assert measure._fastest({"mkl": 1.0, "onednn": 0.85}, ways) == "onednn"
    assert measure._fastest({"mkl": 1.0, "onednn": 5.0}, ways) == "mkl"
    assert measure._fastest({"onednn": 5.0}, ways) == "onednn"  # the only one there


@pytest.mark.parametrize("mode", ["mkl", "onednn", "kernels"])
def test_a_named_library_computes_everything(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IBRL_GEMM", mode)
    fast.set_up()
    table = choice.current()
    assert set(table["layer"].values()) == set(table["tall layer"].values()) == {mode}
    perceptron = "kernels" if mode == "kernels" else "products"
    assert set(table["perceptron"].values()) == {perceptron}
    assert not Path(os.environ["XDG_CACHE_HOME"]).exists()  # nothing needs to be measured


@pytest.mark.parametrize(
    "table", [{}, {"layer": {}}, {**choice.UNMEASURED, "perceptron": {"narrow": "x", "wide": "x"}}]
)
def test_no_other_table_is_used(table: Any) -> None:
    with pytest.raises(UserError, match="matrix products: .*expected a choice"):
        choice.use(table)
    assert choice.current() == choice.UNMEASURED


def test_what_another_version_recorded_is_completed() -> None:
    older = {"layer": {"forward": "onednn"}, "gone": {"x": "y"}}
    found = choice.completed(older)
    assert choice.is_table(found) and found["layer"]["forward"] == "onednn"
    assert found["perceptron"] == choice.current()["perceptron"]
    for damaged in (3, {"layer": 3}):
        with pytest.raises(UserError, match="matrix products: .*expected a choice"):
            choice.completed(damaged)  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", [(3, 64, 100), (4, 1100, 9), (70, 121, 513), (300, 1030, 20)])
@pytest.mark.parametrize("threads", [1, 2])
def test_the_kernels_product(shape: tuple[int, int, int], threads: int) -> None:
    """Dense, transposed and padded operands; the bits depend on no number of threads."""
    m, n, k = shape
    torch.manual_seed(0)
    a, b, bias = torch.randn(m, k), torch.randn(n, k), torch.randn(n)

    def stored(t: torch.Tensor) -> list[torch.Tensor]:
        padded = torch.randn(t.size(0), k + 9)[:, 4 : 4 + k].copy_(t)
        return [t, t.t().contiguous().t(), padded, torch.stack([t, t], dim=2)[:, :, 0]]

    try:
        for mine, theirs, extra in itertools.product(stored(a), stored(b), (None, bias)):
            expected = mine.double() @ theirs.double().t() + (0 if extra is None else bias)
            fast.use_threads(threads)
            found = products.product("kernels", mine, theirs, extra)
            torch.testing.assert_close(found, expected.float(), rtol=1e-4, atol=1e-4)
            fast.use_threads(1)
            assert torch.equal(found, products.product("kernels", mine, theirs, extra))
    finally:
        fast.use_threads(0)


TABLES = list(itertools.product(choice.PRODUCTS, repeat=3))


@pytest.mark.parametrize("libraries", TABLES)
@pytest.mark.parametrize("rows", [32, choice.TALL_ROWS])
def test_each_part_may_have_its_own_library(libraries: tuple[str, ...], rows: int) -> None:
    """Results agree with float64, and each part is computed by the library that was chosen."""
    torch.manual_seed(0)
    parts = dict(zip(choice.WAYS["layer"], libraries, strict=True))
    choice.use({**choice.UNMEASURED, "layer": parts, "tall layer": parts})
    x = torch.randn(rows, 70, requires_grad=True)
    w = torch.randn(66, 70, requires_grad=True)
    b = torch.randn(66, requires_grad=True)
    asked: list[str] = []
    real = products.product

    def noticed(library: str, *operands: Any) -> torch.Tensor:
        asked.append(library)
        return real(library, *operands)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(products, "product", noticed)
        y = fast.linear(x, w, b)
        dy = torch.randn_like(y)
        found = torch.autograd.grad(y, (x, w, b), dy)
    assert asked == ([] if set(libraries) == {"mkl"} else list(libraries))  # all mkl: torch's own
    double = [t.detach().double().requires_grad_() for t in (x, w, b)]
    expected = torch.nn.functional.linear(*double)
    torch.testing.assert_close(y, expected.float(), rtol=1e-4, atol=1e-4)
    for mine, theirs in zip(found, torch.autograd.grad(expected, double, dy.double()), strict=True):
        torch.testing.assert_close(mine, theirs.float(), rtol=1e-4, atol=2e-3)
