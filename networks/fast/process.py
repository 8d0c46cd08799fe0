"""Settings of the whole process. Programs make them (``measure.set_up``), never a constructor."""

from __future__ import annotations

import ctypes
import os
import sys
from functools import lru_cache

import torch

from common_utils.errors import UserError


@lru_cache(maxsize=1)
def keep_freed_memory() -> bool:
    """Have glibc keep big freed blocks for reuse instead of returning them to the system.

    Tensors above 32 MB are otherwise mapped again, page by page, at every operation, which takes
    a third to a half of the time of an update from pixels. The process then keeps its peak
    memory until it ends. Returns whether it was done: not with ``IBRL_MALLOC=system``, nor with
    another C library.
    """
    mode = os.environ.get("IBRL_MALLOC", "keep")
    if mode not in ("keep", "system"):
        raise UserError(f"IBRL_MALLOC: {mode!r}, expected keep or system")
    if mode == "system" or not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    trim_threshold, top_pad, mmap_max = -1, -2, -4  # names of <malloc.h>
    settings = ((mmap_max, 0), (trim_threshold, 2**31 - 1), (top_pad, 2**26))
    return all(mallopt(name, value) == 1 for name, value in settings)


_threads = 0


def use_threads(num: int) -> None:
    """Run the C++ kernels on ``num`` threads; 0, the default: as many as torch's operations.

    Results are the same, bit for bit, with any number. To give small networks two cores, set this
    to 2 and leave torch at one thread: between operations torch's OpenMP threads keep spinning on
    the core that the kernels' thread needs (measured: slower than one thread).
    """
    if num < 0:
        raise ValueError(f"threads: {num}, expected 0 or more")
    global _threads
    _threads = num


def threads() -> int:
    """The number of threads that the C++ kernels run on."""
    return _threads or torch.get_num_threads()
