"""Who multiplies matrices on the CPU, per kind of product.

``IBRL_GEMM`` = mkl, onednn or kernels names one library for all. With auto, the default,
programs measure the kinds at their start (``measure``) and a resumed run uses what its state
recorded, so that it computes the same bits. Code that measures nothing gets :data:`UNMEASURED`.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping

from common_utils.errors import UserError

Table = dict[str, dict[str, str]]

# operations of at least so many rows: the patches of a batch of pictures, not the batch itself
TALL_ROWS = 4096
# perceptrons with layers at least so wide: a weight matrix fills the cache
WIDE = 512

PRODUCTS, PERCEPTRON = ("mkl", "onednn", "kernels"), ("kernels", "products")
# kind of operation -> part of it -> who may compute it; the first unless another is faster
WAYS: dict[str, dict[str, tuple[str, ...]]] = {
    "layer": {"forward": PRODUCTS, "input gradient": PRODUCTS, "weight gradient": PRODUCTS},
    "tall layer": {"forward": PRODUCTS, "input gradient": PRODUCTS, "weight gradient": PRODUCTS},
    "convolution": {"of one picture": ("mkl", "onednn")},
    "perceptron": {"narrow": PERCEPTRON, "wide": PERCEPTRON},
}
UNMEASURED: Table = {
    kind: {part: ways[0] for part, ways in parts.items()} for kind, parts in WAYS.items()
}


def gemm_mode() -> str:
    """``IBRL_GEMM``: auto, mkl, onednn or kernels; UserError on anything else."""
    mode = os.environ.get("IBRL_GEMM", "auto")
    if mode not in ("auto", *PRODUCTS):
        raise UserError(
            f"IBRL_GEMM: {mode!r}, expected auto, {', '.join(PRODUCTS[:-1])} or {PRODUCTS[-1]}"
        )
    return mode


def named() -> Table | None:
    """The table that ``IBRL_GEMM`` asks for; None for auto."""
    mode = gemm_mode()
    return None if mode == "auto" else all_by(mode)


def all_by(library: str) -> Table:
    """The table by which one library computes everything that it can."""

    def way(ways: tuple[str, ...]) -> str:
        return library if library in ways else "products" if "products" in ways else ways[0]

    return {kind: {part: way(ways) for part, ways in parts.items()} for kind, parts in WAYS.items()}


_current: Table | None = None


def current() -> Table:
    """The table in use; do not change it."""
    global _current
    if _current is None:
        _current = named() or UNMEASURED
    return _current


def use(table: Mapping[str, Mapping[str, str]] | None) -> None:
    """Compute by this table from now on; None: as if nothing had been said.

    Raises UserError, and changes nothing, unless it is a table of these kinds, parts and ways.
    """
    global _current
    if table is not None and not is_table(table):
        raise UserError(f"matrix products: {table!r}, expected a choice for each of {WAYS}")
    _current = None if table is None else copy.deepcopy({k: dict(v) for k, v in table.items()})


def completed(recorded: Mapping[str, Mapping[str, str]]) -> Table:
    """The choices that another version recorded, with the current ones for parts it did not know.

    Raises UserError unless ``recorded`` is a table of tables.
    """
    try:
        return {
            kind: {part: recorded.get(kind, {}).get(part, way) for part, way in parts.items()}
            for kind, parts in current().items()
        }
    except AttributeError:
        raise UserError(f"matrix products: {recorded!r}, expected a choice for each part") from None


def is_table(found: object) -> bool:
    """Whether it names an allowed way for every kind and part."""
    return (
        isinstance(found, Mapping)
        and found.keys() == WAYS.keys()
        and all(
            isinstance(found[kind], Mapping)
            and found[kind].keys() == parts.keys()
            and all(found[kind][part] in ways for part, ways in parts.items())
            for kind, parts in WAYS.items()
        )
    )


def layer(rows: int) -> dict[str, str]:
    """Part of a layer's products -> library, for an operand of so many rows."""
    return current()["tall layer" if rows >= TALL_ROWS else "layer"]


def perceptron(width: int) -> str:
    """kernels or products, for a perceptron whose first layer has so many outputs."""
    return current()["perceptron"]["wide" if width >= WIDE else "narrow"]
