"""The formats of demonstrations that can be read: one row each, and the one place that opens them.

To add a format: a class derived from ``bc.demos.Demos`` (its docstring has the contract), in a file
of its own that imports optional packages only when it opens something, and a row here. Training,
RL, ``tools.inspect_dataset`` and ``tools.convert_dataset`` then read it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bc.dataset_config import KeyOptions
from bc.demos import DatasetError, Demos
from bc.lerobot.meta import is_dataset
from bc.lerobot.reader import LeRobotDemos
from bc.loader import DemoFile
from bc.minari_demos import MinariDemos, is_minari
from bc.replay_zarr import ZarrDemos, is_replay
from common_utils.made_by import how_to_make


@dataclass(frozen=True)
class Format:
    """``recognises`` looks at a path that exists, cheaply; ``open`` may raise DatasetError."""

    name: str
    # how a user tells it: in messages
    looks: str
    recognises: Callable[[Path], bool]
    open: Callable[[Path, KeyOptions], Demos]


# the first row that recognises the path counts
FORMATS: tuple[Format, ...] = (
    Format("Zarr replay", "a folder or .zip with meta/episode_ends", is_replay, ZarrDemos),
    Format("Minari", "a folder with data/metadata.json", is_minari, MinariDemos),
    Format("LeRobot", "a folder with meta/info.json", is_dataset, LeRobotDemos),
    Format("HDF5", "a file with a group 'data'", lambda path: not path.is_dir(), DemoFile),
)


def format_of(path: str | Path) -> Format:
    """The format of what lies at ``path``; DatasetError if there is nothing, or none fits."""
    if not str(path):
        raise DatasetError("dataset.path is empty: give a file or folder of demonstrations")
    path = Path(path)
    if not path.exists():
        raise DatasetError(
            f"demonstration file '{path}' does not exist; to make it: {how_to_make(path)}"
        )
    for row in FORMATS:
        if row.recognises(path):
            return row
    known = "; ".join(f"{row.name} ({row.looks})" for row in FORMATS)
    raise DatasetError(f"'{path}' is in no known format of demonstrations, expected {known}")


def open_demos(path: str | Path, keys: KeyOptions | None = None) -> Demos:
    """Open the demonstrations at ``path``, in whatever format; to be closed by the caller."""
    return format_of(path).open(Path(path), keys or KeyOptions())
