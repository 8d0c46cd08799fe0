"""Measure once which library multiplies matrices fastest on this CPU; ``set_up`` of programs.

The result is kept in a file per CPU, torch and number of threads, so that runs on one machine
repeat bit for bit. ``python -m common_utils.doctor`` prints the table.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch

from common_utils.atomic import atomic_write
from common_utils.paths import cache_folder
from common_utils.resources import cpu_name
from networks.fast import choice, plain, process, products
from networks.fast.cpu import mlp, module
from networks.fast.layer import Layer

FORMAT = 4  # raise it when the ways or what is measured changes
# the established way is left only for one that takes at most this share of its time
CLEARLY_FASTER = 0.95
# turns of each way, the first of which is not counted, and about how long a part may take
_LEAST_TURNS, _MOST_TURNS, _SECONDS = 4, 20, 0.1

Times = dict[str, dict[str, dict[str, float]]]  # kind -> part -> way -> milliseconds
Calls = dict[str, dict[str, dict[str, Callable[[], Any]]]]


@dataclass(frozen=True)
class Measured:
    """Milliseconds of every way, and the table that follows from them."""

    times: Times
    table: choice.Table
    path: Path | None  # where they are kept; None if they could not be written


def _calls() -> Calls:
    """One product of each kind, at widths and strides of the released configurations."""
    libraries = [name for name in choice.PRODUCTS if products.available(name)]
    generator = torch.Generator().manual_seed(0)

    def numbers(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    def layer(
        rows: int, inputs: int, outputs: int, gap: int = 0
    ) -> dict[str, dict[str, Callable[[], Any]]]:
        x, g = numbers(rows, inputs), numbers(rows, outputs)
        w = numbers(outputs, inputs + gap)[:, :inputs]
        b, product = numbers(outputs), products.product
        return {
            "forward": {by: partial(product, by, x, w, b) for by in libraries},
            "input gradient": {by: partial(product, by, g, w.t()) for by in libraries},
            "weight gradient": {by: partial(product, by, g.t(), x.t()) for by in libraries},
        }

    def convolutions() -> dict[str, Callable[[], Any]]:
        pictures = [numbers(1, 64, 24, 24), numbers(1, 512, 3, 3)]  # of a ResNet's ends
        weights = [numbers(64, 64, 3, 3), numbers(512, 512, 3, 3)]
        ways = {"mkl": plain.conv2d, "onednn": products.conv2d}

        def both(by: str) -> None:
            for x, w in zip(pictures, weights, strict=True):
                ways[by](x, w, None, (1, 1), (1, 1))

        return {by: partial(both, by) for by in ways if by in libraries}

    def perceptrons(rows: int, width: int) -> dict[str, Callable[[], Any]]:
        x = numbers(rows, width)
        layers = [
            Layer(numbers(width, width).requires_grad_(), numbers(width).requires_grad_()),
            Layer(numbers(width, width).requires_grad_(), numbers(width).requires_grad_()),
        ]
        params = [t for layer in layers for t in layer.params if t is not None]

        def update(forward: Callable[[], torch.Tensor]) -> None:
            torch.autograd.grad(forward().sum(), params)

        def by_products() -> torch.Tensor:
            y = x
            for layer in layers:
                y = torch.relu(torch.nn.functional.linear(y, layer.weight, layer.params[1]))
            return y

        ways: dict[str, Callable[[], Any]] = {"products": lambda: update(by_products)}
        if module.has_gemm():
            ways["kernels"] = lambda: update(lambda: mlp.perceptron(x, layers, None))
        return ways

    return {
        "layer": layer(256, 1024, 1024),
        "tall layer": layer(choice.TALL_ROWS, 121, 1024, gap=34),
        "convolution": {"of one picture": convolutions()},
        "perceptron": {"narrow": perceptrons(256, 256), "wide": perceptrons(256, 1024)},
    }


def _milliseconds(ways: dict[str, Callable[[], Any]]) -> dict[str, float]:
    """The shortest of several calls of each way; they take turns."""
    # one thread's CPU time is not disturbed by other processes
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    best = dict.fromkeys(ways, float("inf"))
    started, turn = clock(), 0
    while turn < _LEAST_TURNS or (turn < _MOST_TURNS and clock() - started < _SECONDS):
        for way, call in ways.items():
            began = clock()
            call()
            if turn > 0:  # the first call prepares
                best[way] = min(best[way], clock() - began)
        turn += 1
    return {way: round(1e3 * seconds, 4) for way, seconds in best.items()}


def _fastest(times: dict[str, float], ways: tuple[str, ...]) -> str:
    """The fastest way; the one that is listed first unless another is clearly faster."""
    first = next(way for way in ways if way in times)
    fastest = min(times, key=lambda way: times[way])
    return fastest if times[fastest] <= CLEARLY_FASTER * times[first] else first


def _table(times: Times) -> choice.Table:
    return {
        kind: {part: _fastest(times[kind][part], ways) for part, ways in parts.items()}
        for kind, parts in choice.WAYS.items()
    }


def cache_file() -> Path:
    """Where the results of this machine are kept."""
    what = {
        "format": FORMAT, "cpu": cpu_name(), "torch": torch.__version__,
        "threads": torch.get_num_threads(), "kernels": module.build(),
    }  # fmt: skip
    name = hashlib.sha256(json.dumps(what).encode()).hexdigest()[:16]
    return cache_folder() / f"products-{name}.json"


def _read(path: Path) -> Measured | None:
    """What an earlier program measured; None if there is nothing that can be used."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if choice.is_table(found["table"]):
            return Measured(found["times"], found["table"], path)
    except (OSError, ValueError, LookupError, TypeError):
        pass
    return None


def _keep(path: Path, times: Times, table: choice.Table) -> Measured:
    """Write them, unless another program was earlier: its results then count."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if (earlier := _read(path)) is not None:
            return earlier
        with atomic_write(path) as temp:
            Path(temp).write_text(
                json.dumps({"times": times, "table": table}, indent=1), encoding="utf-8"
            )
    except OSError:  # no home, or it cannot be written to: measured again by the next program
        return Measured(times, table, None)
    return _read(path) or Measured(times, table, None)


@lru_cache(maxsize=8)
def _measured(path: Path) -> Measured:
    if (found := _read(path)) is not None:
        return found
    with torch.enable_grad():
        times = {
            kind: {part: _milliseconds(ways) for part, ways in parts.items()}
            for kind, parts in _calls().items()
        }
    return _keep(path, times, _table(times))


def measured() -> Measured:
    """This machine's times and table, measured now (about a second) or earlier."""
    return _measured(cache_file())


def set_up(torch_threads: int = 0, kernel_threads: int = 0) -> None:
    """The setup that every program which trains or evaluates does first; 0 threads: leave torch's.

    Raises UserError for one of the IBRL_* environment variables with an unexpected value.
    """
    named = choice.named()
    process.keep_freed_memory()
    if torch_threads > 0:
        torch.set_num_threads(torch_threads)
    process.use_threads(kernel_threads)
    choice.use(named or measured().table)


def report() -> list[str]:
    """A line per kind of product: who computes it, and the milliseconds of each way."""
    if (named := choice.named()) is not None:
        return [f"IBRL_GEMM={choice.gemm_mode()}: {json.dumps(named)}"]
    found = measured()
    return [
        f"{kind}, {part}: {found.table[kind][part]} ("
        + ", ".join(f"{way} {ms:.3g} ms" for way, ms in sorted(ways.items()))
        + ")"
        for kind, parts in found.times.items()
        for part, ways in parts.items()
    ]
