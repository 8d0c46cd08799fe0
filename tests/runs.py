"""What tests of whole programs share: their environment, what runs leave, a full disk."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import resource
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from common_utils.records import read_metrics
from tests import forkserver

REPO = Path(__file__).resolve().parents[1]
TIMING = ("wall", "other/speed", "other/elapsed_time", "time/")  # of a record


def env() -> dict[str, str]:
    """Variables for a program that needs no pictures."""
    return os.environ | {"MUJOCO_GL": "disabled", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPO)}


def weights(save_dir: Path) -> dict[str, torch.Tensor]:
    """A run's newest weights."""
    return torch.load(save_dir / "latest.pt", weights_only=True)


def metrics(save_dir: Path) -> list[dict[str, float]]:
    """A run's records without what measures time."""
    records = read_metrics(save_dir / "metrics.jsonl")
    return [{k: v for k, v in x.items() if not k.startswith(TIMING)} for x in records]


def assert_same_run(a: Path, b: Path) -> None:
    """The same weights, bit for bit, and the same records."""
    wa, wb = weights(a), weights(b)
    assert wa.keys() == wb.keys()
    assert [k for k in wa if not torch.equal(wa[k], wb[k])] == []
    assert metrics(a) == metrics(b)


def respect_permissions() -> None:
    """Called in a new process: what it may not read or write it cannot, even as root."""
    libc = ctypes.CDLL(None)
    for capability in (1, 2):  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
        libc.prctl(24, capability, 0, 0, 0)  # PR_CAPBSET_DROP, in force from exec on


def program(
    *args: object, without_override: bool = False, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run python with ``args``; its output as text."""
    if not without_override:
        return forkserver.run(*args, variables=env() | variables)
    return subprocess.run(
        [sys.executable, *map(str, args)], cwd=REPO, env=env() | variables, text=True,
        stdin=subprocess.DEVNULL, capture_output=True, timeout=120, preexec_fn=respect_permissions,
    )  # fmt: skip


@contextmanager
def file_size_limit(limit: int) -> Iterator[None]:
    """Writes beyond so many bytes fail, as on a full disk."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)


def forked(function: Callable[..., Any], *args: Any, **variables: str) -> Any:
    """The result of ``function`` in a process of its own, which has torch already. There, nothing
    may be reached over the network (Unix sockets aside), and packages that read ``variables``
    as they are imported are imported anew."""
    receiver, sender = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(
        target=_in_fork, args=(sender, function, args, variables)
    )
    process.start()
    sender.close()
    try:
        result = receiver.recv() if receiver.poll(100) else "no answer in 100 seconds"
    except EOFError:
        result = "the process ended without an answer"
    process.join(10)
    process.kill()
    assert not isinstance(result, str), result
    return result[0]


def _in_fork(
    sender: Any, function: Callable[..., Any], args: tuple[Any, ...], variables: dict[str, str]
) -> None:
    def watch(event: str, args: tuple[Any, ...]) -> None:
        where = args[1] if event in ("socket.connect", "socket.sendto") else ""
        if event == "socket.getaddrinfo" or isinstance(where, tuple):
            sender.send(f"network: {event} {args}")
            os._exit(1)

    sys.addaudithook(watch)
    try:
        os.environ.update(variables)
        sender.send((function(*args),))
    except BaseException:
        sender.send(traceback.format_exc())
    sender.close()
