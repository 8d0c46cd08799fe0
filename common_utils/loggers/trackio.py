"""trackio (``--use_trackio 1``): a local dashboard; nothing is sent over the network."""

from __future__ import annotations

import itertools
import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from common_utils.errors import ConfigError
from common_utils.loggers.sink import RunInfo, Sink, in_one_line

FOLDER = "trackio"  # in save_dir
VARIABLE = "TRACKIO_DIR"  # trackio's own: another folder, which several runs may share
_CHUNK = 1000  # records written in one transaction when a run is resumed


class TrackioSink(Sink):
    """Rows in the database of the run's project, in ``save_dir/trackio`` or in ``TRACKIO_DIR``.

    Rows are written as trackio's own importers write them, in this thread. ``trackio.init`` would
    ask Hugging Face for the user's name, log the computer's sensors, and write in a thread that
    hides errors. A resumed run keeps its id; its rows are replaced by those of ``metrics.jsonl``,
    so that no step is there twice.

    Raises ConfigError if the package is missing, or records elsewhere in this process already.
    """

    NAME = "trackio"

    def __init__(self, info: RunInfo) -> None:
        self._info = info
        self._project = info.project or "ibrl"
        self._name = info.name or info.save_dir.name
        self._own = not os.environ.get(VARIABLE)
        self._folder = Path(os.environ.get(VARIABLE) or info.save_dir / FOLDER).absolute()
        self._storage = _storage(self._folder)
        try:
            self._storage.validate_project_name(self._project)
        except ValueError as error:
            raise ConfigError(
                f"use_trackio: 1, but the folder of save_dir cannot name a project "
                f"({in_one_line(error)})"
            ) from None
        self._config_pending = True

    def open(self, before: Sequence[Mapping[str, Any]]) -> None:
        """See :class:`Sink`."""
        if self._own:
            _check_own(self._folder)
        if not self._info.resumed:
            self._forget_replaced_run()
            return
        self._storage.delete_run(self._project, self._name, run_id=self._id)
        if self._storage.get_logs(self._project, self._name, run_id=self._id):
            raise RuntimeError(f"{self._folder}: the run's earlier rows cannot be removed")
        times = _times(before)
        for first in range(0, len(before), _CHUNK):
            self._write(before[first : first + _CHUNK], times[first : first + _CHUNK])

    def _forget_replaced_run(self) -> None:
        """The database of a run that this one replaces (--overwrite 1). In a folder that other
        runs share, that run keeps its rows."""
        if self._own:
            database = self._storage.get_project_db_path(self._project)
            for path in (database, *database.parent.glob(f"{database.name}-*")):
                path.unlink(missing_ok=True)

    @property
    def _id(self) -> str:
        return self._info.run_id or self._name

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        """See :class:`Sink`."""
        self._write([{"step": step, **numbers}], [_text(time.time())])

    def _write(self, rows: Sequence[Mapping[str, Any]], times: list[str]) -> None:
        """Rows as in ``metrics.jsonl`` and when they were recorded."""
        self._storage.bulk_log(
            self._project,
            self._name,
            [_numbers(row) for row in rows],
            steps=[row["step"] for row in rows],
            timestamps=times,
            config=self._config() if self._config_pending else None,
            run_id=self._id,
        )
        self._config_pending = False

    def _config(self) -> dict[str, Any]:
        """The run's configuration, with the entries that trackio's dashboard groups runs by."""
        made = {"_Username": None, "_Created": _text(time.time()), "_Group": self._info.group}
        return {**self._info.config, **made}

    def close(self) -> None:
        """Nothing is open between two rows."""


def _storage(folder: Path) -> Any:
    """trackio's storage, in ``folder``. It reads the variable once, when it is imported."""
    try:
        with _variable(str(folder)):
            from trackio import utils
            from trackio.sqlite_storage import SQLiteStorage
    except ImportError as error:
        raise ConfigError(
            f"use_trackio: 1, but the package trackio cannot be imported ({in_one_line(error)}); "
            "pip install trackio, or do without it (--use_trackio 0)"
        ) from None
    elsewhere = Path(utils.TRACKIO_DIR).absolute()
    if elsewhere != folder:
        raise ConfigError(
            f"use_trackio: 1, but trackio records into '{elsewhere}' in this process, expected "
            f"'{folder}'; set {VARIABLE} to one folder for all runs before the first one"
        )
    return SQLiteStorage


@contextmanager
def _variable(value: str) -> Iterator[None]:
    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[VARIABLE]
        else:
            os.environ[VARIABLE] = before


def _check_own(folder: Path) -> None:
    """Refuse links: in a folder that somebody else sent, they lead anywhere."""
    held = list(folder.iterdir()) if folder.is_dir() else []
    for path in (folder, *held):
        if path.is_symlink():
            raise OSError(f"{path} is a link, expected a folder or file of trackio's")


def _numbers(row: Mapping[str, Any]) -> dict[str, float]:
    """The measurements of a record; JSON has null for NaN and infinity."""
    found = {k: v for k, v in row.items() if k not in ("step", "wall")}
    return {k: math.nan if v is None else v for k, v in found.items()}


def _times(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """When earlier records would have been made, had the run not been interrupted."""
    walls = [float(record.get("wall") or 0) for record in records]
    walls, now = list(itertools.accumulate(walls, max)), time.time()  # trackio sorts by time
    return [_text(now - walls[-1] + wall) for wall in walls]


def _text(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat()
