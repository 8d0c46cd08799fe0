"""The next batch, drawn and copied to a GPU while it computes on the last one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, is_dataclass
from typing import Any, Generic, Protocol, TypeVar

import torch

T = TypeVar("T")


class Rewindable(Protocol):
    """Something that batches are drawn from at random."""

    def mark(self) -> Any:
        """What decides the next batches; equal marks give equal batches."""

    def rewind(self, mark: Any) -> None:
        """Draw on as from ``mark``; contents that were added since stay."""


@dataclass
class _Drawn(Generic[T]):
    batch: T
    request: tuple[Any, ...]
    before: Any
    after: Any


class Ahead(Generic[T]):
    """Draws one batch ahead of its use, on a GPU only; batches and their order do not change.

    After drawing ahead the source is rewound, so whoever saves it sees it as if nothing had been
    drawn. The batch is used if the source is still at that mark when it is asked for. Otherwise,
    after an episode was added for example, it is drawn again. Copies run on a CUDA stream of their
    own, and an update that uses the batch waits for its copy on the GPU, not on the host.
    """

    on_cpu = False  # there drawing ahead costs time and saves none; for tests

    def __init__(self, source: Rewindable, device: torch.device) -> None:
        self._source, self._device = source, device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._ahead: _Drawn[T] | None = None

    def take(self, draw: Callable[..., T], *args: Any) -> T:
        """``draw(*args)``, which may have been done ahead with the same arguments."""
        ahead, self._ahead = self._ahead, None
        if ahead is None or ahead.request != args or ahead.before != self._source.mark():
            return draw(*args)
        self._source.rewind(ahead.after)
        if self._stream is not None:
            current = torch.cuda.current_stream(self._device)
            current.wait_stream(self._stream)
            for tensor in _tensors(ahead.batch):
                tensor.record_stream(current)  # its memory is reused only after the update
        return ahead.batch

    def prepare(self, draw: Callable[..., T], *args: Any) -> None:
        """Do the next ``take`` with these arguments ahead; call it once the update is under way."""
        if self._stream is None and not self.on_cpu:
            return
        before = self._source.mark()
        try:
            with torch.cuda.stream(self._stream):
                batch = draw(*args)
            after = self._source.mark()
        finally:
            self._source.rewind(before)
        self._ahead = _Drawn(batch, args, before, after)


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    """All tensors in nested batches, tuples and dicts."""
    if isinstance(value, torch.Tensor):
        yield value
    elif is_dataclass(value):
        yield from _tensors(vars(value))
    elif isinstance(value, dict):
        yield from _tensors(tuple(value.values()))
    elif isinstance(value, tuple):
        for item in value:
            yield from _tensors(item)
