"""Weights & Biases (``--use_wb 1``)."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from common_utils.atomic import atomic_write
from common_utils.errors import ConfigError
from common_utils.loggers.sink import RunInfo, Sink, in_one_line
from common_utils.plain_file import read_id

ID_FILE = "wandb_id.txt"
_SECONDS = 30.0  # for the server's answer, and for typing a key where there is a terminal
_WAYS_OUT = (
    "log in (wandb login, or the variable WANDB_API_KEY), record on this machine only "
    "(WANDB_MODE=offline), or do without it (--use_wb 0)"
)


class WandbSink(Sink):
    """A ``wandb.Run``; a resumed run continues the one whose id is in ``save_dir``.

    Raises ConfigError, which says what to do, if there is no package, login or network (noticed
    after half a minute, or ``WANDB_INIT_TIMEOUT`` seconds).
    """

    NAME = "Weights & Biases"

    def __init__(self, info: RunInfo) -> None:
        self._id_path = info.save_dir / ID_FILE
        self._run = self._start(info)

    def _start(self, info: RunInfo) -> Any:
        try:
            import wandb
        except ImportError as error:
            raise ConfigError(
                f"use_wb: 1, but the package wandb cannot be imported ({in_one_line(error)}); "
                "pip install wandb, or do without it (--use_wb 0)"
            ) from None
        folder = info.save_dir / "wandb"
        existed = folder.exists()
        try:
            seconds = float(os.environ.get("WANDB_INIT_TIMEOUT", _SECONDS))
            return wandb.init(
                project=info.project or "ibrl",
                name=info.name or info.save_dir.name,
                group=info.group or None,
                dir=str(info.save_dir),
                config=dict(info.config),
                id=(read_id(self._id_path) if info.resumed else "") or uuid.uuid4().hex[:8],
                resume=None if os.environ.get("WANDB_MODE") == "offline" else "allow",
                settings=wandb.Settings(init_timeout=seconds, login_timeout=_SECONDS),
            )
        except Exception as error:  # from the package, pydantic or a time limit
            if not existed:
                shutil.rmtree(folder, ignore_errors=True)
            raise ConfigError(
                f"use_wb: 1, but Weights & Biases cannot be used ({in_one_line(error)}); "
                f"{_WAYS_OUT}"
            ) from None

    def open(self, before: Sequence[Mapping[str, Any]]) -> None:
        """See :class:`Sink`. Steps that the server has already are not recorded again."""
        with atomic_write(self._id_path, "w") as handle:
            handle.write(f"{self._run.id}\n")

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        """See :class:`Sink`."""
        self._run.log(dict(numbers), step=step)

    def close(self) -> None:
        """See :class:`Sink`."""
        self._run.finish()
