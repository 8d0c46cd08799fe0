"""What processes on other machines get from this one, and the Ray cluster that this one uses."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
from pathlib import Path
from typing import Any

from common_utils.errors import ConfigError, shortened
from common_utils.extras import optional

# What programs read; they must have the same values wherever they are started, for the same bits.
CARRIED = (
    "EGL_PLATFORM", "IBRL_GEMM", "MKL_NUM_THREADS", "MUJOCO_GL",
    "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "PYOPENGL_PLATFORM", "PYTHONPATH",
)  # fmt: skip


def variables() -> dict[str, str | None]:
    """This process's values of the variables that programs elsewhere are given; None: not set."""
    return {name: os.environ.get(name) for name in CARRIED}


def found_elsewhere() -> None:
    """Make this program importable for processes that are started with this one's variables."""
    root = str(Path(__file__).resolve().parents[1])
    before = os.environ.get("PYTHONPATH", "")
    if root not in before.split(os.pathsep):
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [root, before]))


def import_path() -> str:
    """A PYTHONPATH with which another process finds whatever this one can import."""
    return os.pathsep.join(p or os.getcwd() for p in sys.path)


def last_line(error: BaseException) -> str:
    """What went wrong in a remote error, whose text ends with it after a long trace."""
    lines = [line for line in str(error).splitlines() if line.strip(" -")]
    return shortened(lines[-1] if lines else type(error).__name__, 300)


def joined_ray(what: str, address: str | None = None) -> Any:
    """The module ``ray``, connected to a cluster; once connected, a process stays so.

    what: the option that needs it, which begins messages. address: of the cluster; None: that of
    RAY_ADDRESS, of the cluster that ``ray start`` has started here, or of one that is started now
    and ends with this process. Raises UserError without the package, ConfigError if no cluster
    answers.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    ray = optional("ray", "scale", what)
    if ray.is_initialized():
        return ray
    handler = signal.getsignal(signal.SIGTERM)
    try:
        _check_listens(address or os.environ.get("RAY_ADDRESS", ""))
        ray.init(address=address, log_to_driver=False, logging_level="error")
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{what}: {last_line(error)}; expected a cluster that runs (ray start)"
        ) from None
    finally:
        # Ray's own would end a program that saves its state first
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)
    return ray


def _check_listens(address: str) -> None:
    """ConnectionError if nobody answers at HOST:PORT; Ray would try for many minutes."""
    host, _, port = address.rpartition(":")
    if "/" in address or not host or not port.isdecimal():
        return  # "auto", another protocol, or what Ray refuses itself
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except (OSError, OverflowError) as error:
        raise ConnectionError(f"no Ray cluster at {address} ({error})") from None
