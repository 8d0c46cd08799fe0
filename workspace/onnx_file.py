"""Writes a graph (``networks.exported``) as an ONNX file, and compares onnxruntime with torch."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from common_utils.atomic import atomic_write
from common_utils.errors import UserError, shortened
from common_utils.extras import optional
from common_utils.ibrl_utils import eval_mode
from common_utils.specs import Obs
from networks.exported import Graph
from networks.ibc.pixel import ImageConfig

EXTRA = "data"  # of pyproject.toml
# of outputs, relative where they are above 1. Usual: 1e-7 (perceptrons) to 1e-5 (ResNets, where
# torch itself is as far from exact arithmetic)
TOLERANCE = 1e-4
ROWS = (1, 16)  # of the batches that are compared
TIES = 1  # rows in which rounding may decide between two equal candidates


class _Function(nn.Module):
    """The graph's function, as the module that the exporter takes."""

    def __init__(self, graph: Graph) -> None:
        super().__init__()
        self.parts = nn.ModuleList(graph.parts)
        self.run = graph.run

    def forward(self, inputs: Obs) -> tuple[torch.Tensor, ...]:
        return self.run(inputs)


def write_onnx(graph: Graph, path: str | Path, about: Mapping[str, str], what: str) -> float:
    """Write ``graph`` as one file (atomic), with ``about`` as its ``metadata_props``.

    Its modules must be on the CPU. The file is compared with torch before it gets its name: on
    random inputs, in batches of :data:`ROWS`. Returns the largest difference. Raises UserError,
    beginning with ``what``, if it is above :data:`TOLERANCE`, if the graph has an operation that
    ONNX lacks, or if a package is missing.
    """
    for package in ("onnx", "onnxscript", "onnxruntime"):
        optional(package, EXTRA, what)
    with eval_mode(*graph.parts), _in_float32(graph), torch.no_grad(), atomic_write(path) as temp:
        program = _exported(graph, what)
        program.model.metadata_props.update(about)
        program.save(str(temp), external_data=False)
        return _check(graph, temp, what)


def _exported(graph: Graph, what: str) -> Any:
    sizes = {word: 2 + n for n, word in enumerate(_words(graph))}  # exporters take 1 for a constant
    dims = {word: torch.export.Dim(word, min=1) for word in sizes}
    example = _example(graph, sizes, seed=0)
    dynamic = {
        port.name: {axis: dims[s] for axis, s in enumerate(port.shape) if isinstance(s, str)}
        for port in graph.inputs
    }
    try:
        with _quietly():
            return torch.onnx.export(
                _Function(graph),
                kwargs={"inputs": example},
                dynamo=True,
                input_names=[port.name for port in graph.inputs],
                output_names=[port.name for port in graph.outputs],
                dynamic_shapes={"inputs": dynamic},
                verbose=False,
            )
    except torch.onnx.errors.OnnxExporterError as error:
        reason = shortened(str(error.__cause__ or error), 300)
        raise UserError(f"{what}: torch cannot express it as ONNX: {reason}") from error


def _words(graph: Graph) -> list[str]:
    """The sizes that may vary."""
    return list(dict.fromkeys(s for p in graph.inputs for s in p.shape if isinstance(s, str)))


def _example(graph: Graph, sizes: Mapping[str, int], seed: int) -> Obs:
    generator = torch.Generator().manual_seed(seed)
    return {port.name: port.example(sizes, generator) for port in graph.inputs}


def open_session(path: str | Path) -> Any:
    """An onnxruntime session of one thread on the CPU."""
    ort = optional("onnxruntime", EXTRA, str(path))
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3  # it warns of machines without a GPU
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _check(graph: Graph, path: Path, what: str) -> float:
    """The largest difference between onnxruntime's outputs and torch's."""
    session, worst = open_session(path), 0.0
    for seed, rows in enumerate(ROWS, 1):
        sizes = {word: rows if n == 0 else 5 for n, word in enumerate(_words(graph))}
        inputs = _example(graph, sizes, seed)
        found = session.run(None, {name: x.numpy() for name, x in inputs.items()})
        expected = [y.numpy() for y in graph.run(inputs)]
        apart = np.stack([_by_row(a, b) for a, b in zip(found, expected, strict=True)]).max(0)
        spared = TIES if graph.chooses and rows > TIES else 0
        worst = max(worst, float(np.sort(apart)[: rows - spared].max()))
    if not worst <= TOLERANCE:
        raise UserError(
            f"{what}: onnxruntime differs from torch by {worst:.1e}, expected at most "
            f"{TOLERANCE:.0e}; nothing is written"
        )
    return worst


def _by_row(found: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """The largest difference in each row; infinite for another shape or type."""
    if found.shape != expected.shape or found.dtype != expected.dtype:
        return np.full(len(expected), np.inf)
    scale = np.maximum(1.0, np.abs(expected))
    return np.abs((found - expected) / scale).reshape(len(expected), -1).max(1)


@contextmanager
def _in_float32(graph: Graph) -> Iterator[None]:
    """Encoders of images compute in float32 inside the block, whatever the run's precision."""
    changed: list[tuple[Any, str, Any]] = []
    for part in graph.parts:
        for module in part.modules():
            image = getattr(getattr(module, "cfg", None), "image", None)
            for owner, name in ((module, "precision"), (image, "conv_precision")):
                own = owner is module or isinstance(owner, ImageConfig)
                if own and getattr(owner, name, "float32") == "bfloat16":
                    changed.append((owner, name, getattr(owner, name)))
    for owner, name, _ in changed:
        setattr(owner, name, "float32")
    try:
        yield
    finally:
        for owner, name, value in changed:
            setattr(owner, name, value)


@contextmanager
def _quietly() -> Iterator[None]:
    """Without what torch's exporter says to those who develop it."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
