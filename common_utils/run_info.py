"""What a run's results depend on besides its configuration: ``run_info.json`` in its folder.

    {"starts": [{"step": 0, "preset": ..., "changes": [...], "time": ..., "command": ...,
                 "commit": ..., "cpu": ..., "packages": {...}, ...}, ...]}

One entry per start, the first and those with ``--resume 1``: a run may go on elsewhere.
``tools.report`` shows them. Nothing reads them to train, so a file that is lost or damaged stops
no run.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common_utils import records
from common_utils.atomic import atomic_json
from common_utils.errors import shortened
from common_utils.paths import IS_CHECKOUT, REPO
from common_utils.plain_file import read_small_text
from common_utils.resources import cpu_name
from common_utils.version import __version__

INFO_FILE = "run_info.json"
MAX_BYTES = 1 << 20
MOST_STARTS = 200  # of a run that a scheduler starts again and again: the first, and the newest
PACKAGES = (
    "torch", "numpy", "scipy", "mujoco", "gymnasium", "metaworld", "robosuite", "pybullet",
    "gymnasium-robotics",
)  # fmt: skip
VARIABLES = ("OMP_NUM_THREADS", "MUJOCO_GL", "IBRL_GEMM", "CUDA_VISIBLE_DEVICES")


def read_starts(folder: Path) -> list[dict[str, Any]]:
    """The entries of a run's file; [] without one. Raises ValueError if it holds something else."""
    try:
        tree = json.loads(read_small_text(folder / INFO_FILE, MAX_BYTES))
    except FileNotFoundError:
        return []
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{folder / INFO_FILE}: {shortened(str(error))}") from None
    starts = tree.get("starts") if isinstance(tree, dict) else None
    if not isinstance(starts, list) or not all(isinstance(x, dict) for x in starts):
        raise ValueError(f"{folder / INFO_FILE}: holds no list of objects 'starts'")
    return starts


def write_start(folder: Path, facts: Mapping[str, Any]) -> str:
    """Add an entry: ``facts`` about the run, and this machine. Returns a note if another thing was
    in the file's place, else ""."""
    path, note = folder / INFO_FILE, ""
    try:
        starts = read_starts(folder)
    except ValueError as error:
        starts, note = [], f"{error}; it is kept as {records.set_aside(path).name}"
    starts.append({**facts, **here()})
    atomic_json({"starts": starts[:1] + starts[1:][-MOST_STARTS:]}, path)
    return note


def here() -> dict[str, Any]:
    """This process and this machine, as plain values."""
    return {
        "time": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "command": shortened(shlex.join(sys.argv), 2000),
        "program": __version__,
        "commit": commit(),
        "python": platform.python_version(),
        "system": platform.platform(),
        "cpu": cpu_name(),
        "cores": len(os.sched_getaffinity(0)),
        "gpu": gpu(),
        "packages": versions(),
        "variables": {name: os.environ[name] for name in VARIABLES if name in os.environ},
    }


def commit() -> str:
    """The checkout's commit, "+ changes" if files differ from it; "" outside a checkout."""
    if not IS_CHECKOUT:
        return ""
    head = _git("rev-parse", "HEAD")
    changed = _git("status", "--porcelain", "--untracked-files=no") if head else ""
    return f"{head} + changes" if changed else head


def _git(*args: str) -> str:
    """What git prints about the checkout; "" if it cannot."""
    command = ["git", "-C", str(REPO), *args]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def gpu() -> str:
    """The names of the GPUs that torch sees; "" without one, or if torch is not loaded."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return ""
    return ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))


def versions() -> dict[str, str]:
    """Versions of the packages that results depend on, of those installed."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            pass
    return found
