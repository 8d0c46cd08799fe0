"""The processes ("ranks") of one run that ``torchrun`` has started: one group, one run.

    torchrun --nproc_per_node 2 train_bc.py ...

Rank 0 is the run: it reads the options, holds the folder, logs, evaluates and saves. The others
get everything from it, compute their rows of each batch, and print nothing. Gradients are averaged
in one flat buffer (:func:`average`), after which all ranks take the same step.

How it ends: whoever ends for a reason of its own (an error, a signal, ``--help``) writes it into
the group's store. The others, whose next exchange fails, read it there: rank 0 reports it, the
others end silently. Nothing that arrives is unpickled.

A process that was started alone is rank 0 of 1, and nothing here does anything.
"""

from __future__ import annotations

import io
import json
import math
import os
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from common_utils.errors import USER_ERROR, UserError, print_error
from common_utils.rows import Rows

# Ranks wait while rank 0 evaluates, for hours. One that dies is noticed at once: its connections
# are closed.
_WAIT = timedelta(days=30)
_GRACE = 5.0  # seconds in which a rank that ends writes why
_ENDED = "ended"


class RankError(UserError):
    """Another rank has ended the run."""


@dataclass
class _Group:
    rank: int = 0
    world: int = 1
    store: Any = None


_group = _Group()


def world() -> int:
    """How many ranks there are."""
    return _group.world


def rank() -> int:
    """This process's number among them."""
    return _group.rank


def is_first() -> bool:
    """Whether this process is the run itself: it alone writes, prints and evaluates."""
    return _group.rank == 0


def local_rank() -> int:
    """This process's number among those on its machine, which is that of its GPU."""
    return int(os.environ.get("LOCAL_RANK", _group.rank)) if _group.world > 1 else 0


def on_this_machine() -> int:
    """How many of the ranks share this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", _group.world)) if _group.world > 1 else 1


def split(total: int) -> Rows | None:
    """This rank's rows of a batch of ``total``; None: there is one rank, which has all of them."""
    return Rows.of_rank(_group.rank, _group.world, total) if _group.world > 1 else None


# ------------------------------------------------------------------------- joining, ending


@contextmanager
def joined() -> Iterator[None]:
    """Inside the block the processes that torchrun started are one group.

    An error on any rank ends all of them, with one message. Inside another such block, and in a
    process that was started alone, this does nothing. Raises UserError if they cannot connect.
    """
    started = dist.is_torchelastic_launched() and int(os.environ.get("WORLD_SIZE", "1")) > 1
    if not started or _group.world > 1:
        yield
        return
    _connect()
    try:
        yield
    except BaseException as error:
        _end(error)
        raise
    finally:
        _leave()


def _connect() -> None:
    global _group
    try:
        store, number, world_size = next(iter(dist.rendezvous("env://")))
        # a restart by torchrun finds the same store
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        store = dist.PrefixStore(f"ibrl/{attempt}", store)
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(
            backend, store=store, rank=number, world_size=world_size, timeout=_WAIT
        )
    except (RuntimeError, ValueError, OSError) as error:
        line = str(error).strip().partition("\n")[0]
        raise UserError(f"the ranks of this run cannot connect ({line})") from error
    _group = _Group(number, world_size, store)
    if local_rank() < torch.cuda.device_count():
        torch.cuda.set_device(local_rank())
    if number:  # rank 0 says everything
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)
        os.close(nowhere)
        warnings.simplefilter("ignore")


def _leave() -> None:
    global _group
    dist.destroy_process_group()
    _group = _Group()


def _end(error: BaseException) -> None:
    """Tell the others why this rank ends. On ranks other than 0, SystemExit in place of errors
    that the user can understand: rank 0 prints them."""
    silent = isinstance(error, (UserError, SystemExit, KeyboardInterrupt))
    status = 1
    if isinstance(error, UserError):
        status = USER_ERROR
    elif isinstance(error, SystemExit) and not isinstance(error.code, str):
        status = int(error.code or 0)
    who = f"rank {_group.rank}: " if _group.rank else ""
    said = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
    reason = {"rank": _group.rank, "status": status, "message": f"{who}{said}"}
    first = reason
    if not isinstance(error, RankError):
        try:
            found = _group.store.compare_set(_ENDED, "", json.dumps(reason))
            first = json.loads(found) if found else reason
        except RuntimeError:  # the store was in a process that has ended
            pass
    if _group.rank and silent:
        raise SystemExit(first["status"]) from None


def _reason() -> dict[str, Any] | None:
    """Why another rank has ended; None if it did not say."""
    until = time.monotonic() + _GRACE
    try:
        while not _group.store.check([_ENDED]):
            if time.monotonic() > until:
                return None
            time.sleep(0.05)
        return json.loads(_group.store.get(_ENDED))
    except (RuntimeError, ValueError):
        return None


@contextmanager
def _exchange() -> Iterator[None]:
    """An exchange that fails because another rank has ended raises RankError, or on ranks other
    than 0 SystemExit."""
    try:
        yield
    except RuntimeError as error:
        reason = _reason()
        if _group.rank and reason is not None:
            raise SystemExit(reason["status"]) from None
        lost = (
            f"another rank of the {_group.world} has ended without a word (killed, or out of "
            f"memory?): {str(error).strip().partition(chr(10))[0]}"
        )
        if _group.rank:  # rank 0 is gone; one of the others says so
            if not _claimed(lost):
                print_error(lost)
            raise SystemExit(1) from None
        raise RankError(lost if reason is None else reason["message"]) from error


def _claimed(message: str) -> bool:
    """Whether another rank has given the reason; if not, this one does."""
    reason = {"rank": _group.rank, "status": 1, "message": message}
    try:
        found = json.loads(_group.store.compare_set(_ENDED, "", json.dumps(reason)))
    except (RuntimeError, ValueError):
        return _group.rank > 1  # there is no store any more
    return found["rank"] != _group.rank


# ------------------------------------------------------------------------- exchanging


def average(tensors: Sequence[torch.Tensor], rows: Rows | None, asked: bool = False) -> bool:
    """Replace float tensors, means over this rank's ``rows``, by the means over the batch.

    All travel in one buffer on the tensors' device. ``asked``: whether this rank wants to stop;
    returns whether any does. With one rank (``rows`` None) nothing is changed.
    """
    if rows is None:
        return asked
    like = tensors[0]
    flag = like.new_full((1,), float(asked))
    flat = torch.cat([*(t.detach().to(like).reshape(-1) for t in tensors), flag])
    flat[:-1].mul_(rows.share)
    with _exchange():
        dist.all_reduce(flat)
    at = 0
    with torch.no_grad():
        for t in tensors:
            t.copy_(flat[at : at + t.numel()].view(t.shape))
            at += t.numel()
    return bool(flat[-1] > 0.5)


def shared_tensor(tensor: torch.Tensor) -> torch.Tensor:
    """Rank 0's tensor, on every rank: overwrites the others', which have the same shape."""
    with _exchange():
        dist.broadcast(tensor, 0)
    return tensor


def wait() -> None:
    """Until all ranks are here."""
    if _group.world > 1:
        with _exchange():
            dist.barrier()


def shared(value: Any = None) -> Any:
    """Rank 0's value on every rank: plain data and tensors, as ``torch.load`` reads without
    unpickling. The others' argument is ignored."""
    if _group.world == 1:
        return value
    data = torch.empty(0, dtype=torch.uint8)
    if is_first():
        stream = io.BytesIO()
        torch.save(value, stream)
        data = torch.frombuffer(bytearray(stream.getbuffer()), dtype=torch.uint8)
    size = shared_tensor(torch.tensor(data.numel()))
    data = shared_tensor(data if is_first() else torch.empty(int(size), dtype=torch.uint8))
    if is_first():
        return value
    return torch.load(io.BytesIO(data.numpy().tobytes()), map_location="cpu", weights_only=True)


def scattered(tensors: Sequence[torch.Tensor], total: int) -> list[torch.Tensor]:
    """Each rank's rows (:func:`split`) of rank 0's tensors [total, ...].

    On the other ranks ``tensors`` have the same trailing shapes and types, and are on the device on
    which the rows will be.
    """
    shares = [Rows.of_rank(r, _group.world, total) for r in range(_group.world)]
    if is_first():
        packed = [torch.cat([_bytes(t[s.here]) for t in tensors]) for s in shares[1:]]
        with _exchange():
            sent = [dist.isend(data, to + 1) for to, data in enumerate(packed)]
            for work in sent:
                if work is not None:
                    work.wait()
        return [t[shares[0].here] for t in tensors]
    num = shares[_group.rank].num
    shapes = [(num, *t.shape[1:]) for t in tensors]
    sizes = [math.prod(s) * t.element_size() for s, t in zip(shapes, tensors, strict=True)]
    data = torch.empty(sum(sizes), dtype=torch.uint8, device=tensors[0].device)
    with _exchange():
        dist.recv(data, 0)
    parts = data.split(sizes)  # copied, because numbers must be aligned
    found = zip(parts, shapes, tensors, strict=True)
    return [part.clone().view(like.dtype).view(shape) for part, shape, like in found]


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().view(-1).view(torch.uint8)
