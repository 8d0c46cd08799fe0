"""Two processes that are the ranks of one run, as torchrun starts them, but forked: they have torch
already, which takes seconds to import."""

from __future__ import annotations

import multiprocessing
import os
import traceback
from collections.abc import Callable
from typing import Any

import torch.distributed as dist


def pair(function: Callable[..., Any], *args: Any) -> list[Any]:
    """What ``function(*args)`` returns on rank 0 and on rank 1, or the exception that it raises."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    started = [_start(rank, store.port, function, args) for rank in range(2)]
    results = []
    for process, receiver in started:
        try:
            results.append(receiver.recv() if receiver.poll(100) else "no answer in 100 seconds")
        except EOFError:
            results.append("ended without an answer")
        process.join(10)
        process.kill()
    return results


def _start(rank: int, port: int, function: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    receiver, sender = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(
        target=_be, args=(rank, port, sender, function, args)
    )
    process.start()
    sender.close()
    return process, receiver


def _be(
    rank: int, port: int, sender: Any, function: Callable[..., Any], args: tuple[Any, ...]
) -> None:
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "test",
        "TORCHELASTIC_USE_AGENT_STORE": "True",
    }  # fmt: skip
    try:
        sender.send(function(*args))
    except BaseException as error:
        traceback.print_exc()
        sender.send(error)
    os._exit(0)
