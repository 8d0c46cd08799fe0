"""How many processes may draw on a GPU at the same time.

Some cards stall when about eight OpenGL contexts draw at once. So each process that opens one takes
a slot, a locked file, of all runs of this user on this machine. It keeps the slot until it ends,
however it ends. Software renderers (Mesa's llvmpipe, OSMesa) need none: cores limit them.
"""

from __future__ import annotations

import fcntl
import os
import socket
from pathlib import Path

from common_utils.errors import UserError
from common_utils.paths import cache_folder
from env.core import EnvError

VARIABLE, DEFAULT = "IBRL_MAX_RENDERERS", 7
SOFTWARE = ("llvmpipe", "softpipe", "swrast", "software")
_held: dict[Path, int] = {}  # descriptors of this process's slots, by folder
_holder = -1  # the process that took them; a child of a fork has none of its own


def most() -> int:
    """``IBRL_MAX_RENDERERS``, 7 by default; 0: no limit. UserError on anything else."""
    text = os.environ.get(VARIABLE, str(DEFAULT))
    if not text.isdigit():
        raise UserError(f"{VARIABLE}: '{text}', expected an integer of at least 0 (0: no limit)")
    return int(text)


def is_software(renderer: str) -> bool:
    """Whether a ``GL_RENDERER`` draws on the CPU."""
    return any(name in renderer.lower() for name in SOFTWARE)


def current_renderer() -> str:
    """``GL_RENDERER`` of the context that is current; "" if there is none."""
    from OpenGL import GL

    name = GL.glGetString(GL.GL_RENDERER)
    return name.decode(errors="replace") if name else ""


def folder() -> Path:
    """The slots of the GPU that MuJoCo's EGL takes; homes may be shared by machines."""
    gpu = os.environ.get("MUJOCO_EGL_DEVICE_ID", "0")
    return cache_folder() / "renderers" / f"{socket.gethostname()}-{gpu}"


def take(renderer: str) -> None:
    """Take a slot for this process, once; EnvError if all are taken.

    renderer: the ``GL_RENDERER`` of its context.
    """
    global _holder
    limit, here = most(), folder()
    if not renderer or is_software(renderer) or limit == 0:
        return
    if _holder != os.getpid():
        _holder = os.getpid()
        _held.clear()
    if here in _held:
        return
    for number in range(limit):
        handle = _locked(here, number)
        if handle is not None:
            _held[here] = handle
            return
    raise EnvError(
        f"{limit} processes draw on this GPU ({renderer}) already, expected at most {limit - 1} "
        f"others: fewer num_env, num_eval_worker or runs, or a larger {VARIABLE}"
    )


def check_free(wanted: int, fields: str) -> None:
    """EnvError unless ``wanted`` more processes may draw, beside those that do now.

    Without a process that draws on a GPU (this run's environments do already, if there is one)
    everything is free. ``fields``: those that ask for the processes.
    """
    limit, here = most(), folder()
    if limit == 0 or not here.is_dir():
        return
    taken = sum(_is_taken(here / str(number)) for number in range(limit))
    if taken and taken + wanted > limit:
        raise EnvError(
            f"{fields}: {wanted} more processes would draw on the GPU beside {taken} that do, "
            f"expected at most {limit} in all ({VARIABLE})"
        )


def _locked(here: Path, number: int) -> int | None:
    """The descriptor of a slot that was free; None if another process has it."""
    here.mkdir(parents=True, exist_ok=True)
    handle = os.open(here / str(number), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        return None
    return handle


def _is_taken(path: Path) -> bool:
    try:
        handle = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)  # given back as it is closed
    except BlockingIOError:
        return True
    finally:
        os.close(handle)
    return False
