"""What two ranks on this machine take to exchange gradients and batches, by gloo as torchrun's."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from datetime import timedelta
from multiprocessing import get_context
from typing import Any

import torch
import torch.distributed as dist

REPEATS = 5
LIMIT = timedelta(seconds=120)


def exchange_seconds(gradient_bytes: int, sent_bytes: int) -> tuple[float, float]:
    """Seconds of averaging so many bytes of gradients, and of sending so many bytes to the other;
    medians. (0, 0) where two processes cannot connect."""
    context = get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        found = context.SimpleQueue()
        args = folder, gradient_bytes, sent_bytes, found
        others = [context.Process(target=_rank, args=(number, *args)) for number in range(2)]
        for process in others:
            process.start()
        for process in others:
            process.join()
        if any(process.exitcode for process in others):
            return 0.0, 0.0
        averaged, sent = found.get()
        return averaged, sent


def _rank(number: int, folder: str, gradient_bytes: int, sent_bytes: int, found: Any) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store", 2)
    dist.init_process_group("gloo", store=store, rank=number, world_size=2, timeout=LIMIT)
    gradients = torch.zeros(max(1, gradient_bytes // 4))
    part = torch.zeros(max(1, sent_bytes), dtype=torch.uint8)

    def send() -> None:
        if number == 0:
            dist.send(part, 1)
        else:
            dist.recv(part, 0)

    took = _median(lambda: dist.all_reduce(gradients)), _median(send)
    if number == 0:
        found.put(took)
    dist.destroy_process_group()


def _median(exchange: Callable[[], object]) -> float:
    seconds = []
    for _ in range(1 + REPEATS):
        dist.barrier()
        started = time.perf_counter()
        exchange()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds[1:])
