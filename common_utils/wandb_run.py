"""The Weights & Biases part of a run, started before the run writes anything."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common_utils.plain_file import read_id
from common_utils.run_config import ConfigError

ID_FILE = "wandb_id.txt"
_SECONDS = 30.0  # for the server's answer, and for typing a key where there is a terminal
_WAYS_OUT = (
    "log in (wandb login, or the variable WANDB_API_KEY), record on this machine only "
    "(WANDB_MODE=offline), or do without it (--use_wb 0)"
)


def start_wandb(
    save_dir: Path,
    config: Mapping[str, Any],
    *,
    project: str = "",
    name: str = "",
    group: str = "",
    resume: bool = False,
) -> Any:
    """A started ``wandb.Run``; with ``resume`` the one whose id is in ``save_dir``.

    Raises ConfigError, which says what to do, if there is no package, login or network (noticed
    after half a minute, or ``WANDB_INIT_TIMEOUT`` seconds).
    """
    try:
        import wandb
    except ImportError as error:
        raise ConfigError(
            f"use_wb: 1, but the package wandb cannot be imported ({_line(error)}); "
            "pip install wandb, or do without it (--use_wb 0)"
        ) from None
    folder = save_dir / "wandb"
    existed = folder.exists()
    try:
        seconds = float(os.environ.get("WANDB_INIT_TIMEOUT", _SECONDS))
        return wandb.init(
            project=project or "ibrl",
            name=name or save_dir.name,
            group=group or None,
            dir=str(save_dir),
            config=dict(config),
            id=(read_id(save_dir / ID_FILE) if resume else "") or uuid.uuid4().hex[:8],
            resume=None if os.environ.get("WANDB_MODE") == "offline" else "allow",
            settings=wandb.Settings(init_timeout=seconds, login_timeout=_SECONDS),
        )
    except Exception as error:  # from the package, pydantic or a time limit
        if not existed:
            shutil.rmtree(folder, ignore_errors=True)
        raise ConfigError(
            f"use_wb: 1, but Weights & Biases cannot be used ({_line(error)}); {_WAYS_OUT}"
        ) from None


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
