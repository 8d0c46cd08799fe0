"""The rows of a batch that this process computes, where several processes share one batch.

Random numbers that belong to a row (shifts of a picture, dropout masks, noise of actions,
counter-examples) are drawn for the whole batch, and each process keeps those of its own rows. All
processes draw the same numbers from equal generators, so neither the numbers nor the generators
depend on how many processes there are.

    with computing(Rows(4, 4, 8)):          # the second half of a batch of 8
        shifts = drawn(torch.rand, (4, 2))  # rows 4 to 8 of torch.rand(8, 2)

Outside of such a block :func:`drawn` draws for all rows that it is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Rows:
    """Rows [first, first + num) of a batch of ``total``."""

    first: int
    num: int
    total: int

    @classmethod
    def of_rank(cls, rank: int, world: int, total: int) -> Rows:
        """The share of process ``rank`` of ``world``: as equal as possible, in order."""
        first, end = total * rank // world, total * (rank + 1) // world
        return cls(first, end - first, total)

    @property
    def here(self) -> slice:
        """Where they are in the batch."""
        return slice(self.first, self.first + self.num)

    @property
    def share(self) -> float:
        """The weight of a mean over these rows in the mean over the batch."""
        return self.num / self.total

    def times(self, num: int) -> Rows:
        """As places on an axis that holds ``num`` numbers for these rows, equally many for each
        (the candidates of an observation, its frames); ValueError if it cannot."""
        each, rest = divmod(num, self.num)
        if rest:
            raise ValueError(f"{num} numbers on an axis are not those of {self.num} rows")
        return Rows(self.first * each, num, self.total * each)


_current: Rows | None = None


def current() -> Rows | None:
    """The rows that this process computes; None: all of them."""
    return _current


@contextmanager
def computing(rows: Rows | None) -> Iterator[None]:
    """Inside the block tensors hold these rows of a batch (None: a whole batch)."""
    global _current
    before, _current = _current, rows
    try:
        yield
    finally:
        _current = before


def drawn(
    draw: Callable[[Sequence[int]], torch.Tensor], shape: Sequence[int], axis: int = 0
) -> torch.Tensor:
    """``draw(shape)``; of a part of a batch, the part of what is drawn for the whole.

    ``axis`` is the one of the rows.
    """
    if _current is None:
        return draw(shape)
    part = _current.times(shape[axis])
    whole = [part.total if i == axis % len(shape) else n for i, n in enumerate(shape)]
    return draw(whole).narrow(axis, part.first, part.num)
