"""Writes LeRobot datasets (v3.0): a new folder, episode by episode (see ``bc.lerobot.meta``)."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from bc.demos import DatasetError
from bc.lerobot import stats
from bc.lerobot.meta import COUNTERS, EPISODES, EXTRA, INFO, STATS
from bc.lerobot.parquet import require
from common_utils.atomic import atomic_json

VERSION = "v3.0"
PART = "chunk-{chunk_index:03d}/file-{file_index:03d}"
DATA_PATH, VIDEO_PATH = f"data/{PART}.parquet", f"videos/{{video_key}}/{PART}.mp4"
# a file that is larger than this is followed by another one, a folder of so many by another one
DATA_MB, VIDEO_MB, CHUNK = 100, 200, 1000
PIXELS = "yuv420p"
# every second frame can be decoded by itself, as in lerobot's own files: training reads at random
KEYFRAMES = {"g": "2"}
# name -> FFmpeg's encoder and its options. The quality is chosen for pictures that policies see:
# better than lerobot's own AV1 (crf 30)
CODECS: dict[str, tuple[str, dict[str, str]]] = {
    "h264": ("libx264", {"crf": "18", "bf": "0"}),
    "av1": ("libsvtav1", {"crf": "22", "preset": "8", "svtav1-params": "lp=1"}),
}
LOSSLESS = "png"


@dataclass(frozen=True)
class Column:
    """A feature of numbers: numpy's name of its dtype, shape of a step, names of the numbers."""

    dtype: str
    shape: tuple[int, ...]
    names: list[str] | None = None


@dataclass(frozen=True)
class Camera:
    """A feature of pictures [height, width, 3]."""

    height: int
    width: int


@dataclass
class _Place:
    """Where the next episode goes: a file with what it already holds."""

    file: int = 0
    steps: int = 0
    open: Any = None
    path: Path = field(default_factory=Path)

    @property
    def numbers(self) -> dict[str, int]:
        return {"chunk_index": self.file // CHUNK, "file_index": self.file % CHUNK}


class LeRobotWriter:
    """A dataset being written into the empty folder ``root``; use as a context manager.

    codec: "h264", "av1" or "png" (no loss, pictures in the tables). The dataset is complete when
    the block ends without an exception.
    """

    def __init__(
        self, root: Path, features: Mapping[str, Column | Camera], fps: float, codec: str,
        robot: str = "",
    ) -> None:  # fmt: skip
        self._arrow, self._parquet = require("pyarrow"), require("pyarrow.parquet")
        self.root, self.features, self.codec, self.robot = root, dict(features), codec, robot
        self.fps = int(fps) if float(fps).is_integer() else float(fps)
        self.extra: dict[str, Any] = {}
        self._data = _Place()
        self._videos: dict[str, _Place] = {}
        if codec != LOSSLESS:
            self._videos = {k: _Place() for k, v in features.items() if isinstance(v, Camera)}
            _check_sizes(features)
        self._tasks: dict[str, int] = {}
        self._episodes: list[dict[str, Any]] = []
        self._stats: list[dict[str, stats.Stats]] = []
        self._steps = 0

    def __enter__(self) -> LeRobotWriter:
        return self

    def __exit__(self, kind: object, *rest: object) -> None:
        with ExitStack() as closing:
            for place in (self._data, *self._videos.values()):
                closing.callback(self._close, place)
        if kind is None:
            self._finish()

    # ------------------------------------------------------------ episodes

    def add(self, arrays: Mapping[str, np.ndarray], task: str) -> None:
        """Write the next episode: an array [T, ...] for each feature, pictures [T, 3, H, W]."""
        length = len(next(iter(arrays.values())))
        row: dict[str, Any] = {
            "episode_index": len(self._episodes),
            "tasks": [task],
            "length": length,
            "dataset_from_index": self._steps,
            "dataset_to_index": self._steps + length,
        }
        found: dict[str, stats.Stats] = {}
        for name, feature in self.features.items():
            numbers = isinstance(feature, Column)
            found[name] = (stats.of_numbers if numbers else stats.of_pictures)(arrays[name])
        for name in self._videos:
            row |= {f"videos/{name}/{k}": v for k, v in self._add_video(name, arrays[name]).items()}
        counters = self._counters(length, self._tasks.setdefault(task, len(self._tasks)))
        row |= {f"data/{k}": v for k, v in self._add_rows(arrays, counters).items()}
        found |= {name: stats.of_numbers(values) for name, values in counters.items()}
        for name, values in found.items():
            row |= {f"stats/{name}/{k}": v.tolist() for k, v in values.items()}
        self._stats.append(found)
        self._episodes.append(row | {"meta/episodes/chunk_index": 0, "meta/episodes/file_index": 0})
        self._steps += length

    def _counters(self, length: int, task: int) -> dict[str, np.ndarray]:
        steps = np.arange(length)
        return {
            "timestamp": (steps / self.fps).astype(np.float32),
            "frame_index": steps,
            "episode_index": np.full(length, len(self._episodes)),
            "index": steps + self._steps,
            "task_index": np.full(length, task),
        }

    def _add_rows(
        self, arrays: Mapping[str, np.ndarray], counters: Mapping[str, np.ndarray]
    ) -> dict[str, int]:
        """A row group with the episode's numbers (and its pictures, if there are no videos)."""
        columns = {
            name: self._packed(arrays[name])
            if isinstance(feature, Camera)
            else self._listed(arrays[name], feature)
            for name, feature in self.features.items()
            if name not in self._videos
        }
        columns |= {name: self._arrow.array(values) for name, values in counters.items()}
        table, place = self._arrow.table(columns), self._data
        if place.open is None:
            place.path = self._new_file(DATA_PATH.format(**place.numbers))
            place.open = self._parquet.ParquetWriter(place.path, table.schema)
        place.open.write_table(table)
        place.steps += len(table)
        return self._next_if_large(place, DATA_MB)

    def _listed(self, values: np.ndarray, column: Column) -> Any:
        """An array of numbers as lists of fixed length (in lists ...); single numbers without."""
        array = self._arrow.array(np.ascontiguousarray(values, column.dtype).reshape(-1))
        for length in reversed(column.shape) if column.shape != (1,) else ():
            array = self._arrow.FixedSizeListArray.from_arrays(array, length)
        return array

    def _packed(self, frames: np.ndarray) -> Any:
        """Pictures as PNG, in the form in which the datasets package holds them."""
        packed = []
        for frame in frames:
            buffer = io.BytesIO()
            Image.fromarray(np.ascontiguousarray(frame.transpose(1, 2, 0))).save(buffer, "PNG")
            packed.append({"bytes": buffer.getvalue(), "path": None})
        text, binary = self._arrow.string(), self._arrow.binary()
        kind = self._arrow.struct([("bytes", binary), ("path", text)])
        return self._arrow.array(packed, kind)

    def _add_video(self, name: str, frames: np.ndarray) -> dict[str, Any]:
        av, place = require("av"), self._videos[name]
        if place.open is None:
            place.path = self._new_file(VIDEO_PATH.format(video_key=name, **place.numbers))
            place.open = _Encoder(place.path, frames.shape[2:], self.fps, self.codec)
            place.steps = 0
        start = place.steps
        for frame in frames:
            picture = np.ascontiguousarray(frame.transpose(1, 2, 0))
            place.open.write(av.VideoFrame.from_ndarray(picture, format="rgb24"), place.steps)
            place.steps += 1
        times = {"from_timestamp": start / self.fps, "to_timestamp": place.steps / self.fps}
        return self._next_if_large(place, VIDEO_MB) | times

    def _new_file(self, relative: str) -> Path:
        path = self.root / relative
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def _next_if_large(self, place: _Place, most_mb: int) -> dict[str, int]:
        """The numbers of the file; the next episode begins another one if this one is large."""
        numbers = place.numbers
        # an encoder that still holds all frames has not made its file
        if place.path.exists() and place.path.stat().st_size >= most_mb * 2**20:
            self._close(place)
            place.file, place.steps = place.file + 1, 0
        return numbers

    @staticmethod
    def _close(place: _Place) -> None:
        if place.open is not None:
            place.open.close()
            place.open = None

    # ------------------------------------------------------------ what describes them

    def _finish(self) -> None:
        if not self._episodes:
            raise DatasetError("no episode was written, expected at least one")
        path = self._new_file(f"{EPISODES}/{PART.format(chunk_index=0, file_index=0)}.parquet")
        self._parquet.write_table(self._arrow.Table.from_pylist(self._episodes), path)
        self._parquet.write_table(self._task_table(), self.root / "meta" / "tasks.parquet")
        names = self._stats[0]
        merged = {name: stats.together([s[name] for s in self._stats]) for name in names}
        plain = {n: {k: v.tolist() for k, v in values.items()} for n, values in merged.items()}
        atomic_json(plain, self.root / STATS, indent=4)
        if self.extra:
            atomic_json(self.extra, self.root / EXTRA)
        atomic_json(self._info(), self.root / INFO, indent=4)

    def _task_table(self) -> Any:
        """Tasks by number; lerobot reads them with pandas, as a frame with the index "task"."""
        column = {"pandas_type": "int64", "numpy_type": "int64", "metadata": None}
        index = {"pandas_type": "unicode", "numpy_type": "object", "metadata": None}
        described = {
            "index_columns": ["task"],
            "column_indexes": [],
            "columns": [
                {"name": "task_index", "field_name": "task_index", **column},
                {"name": "task", "field_name": "task", **index},
            ],
            "pandas_version": "2.0.0",
        }
        numbers = self._arrow.array(list(self._tasks.values()), self._arrow.int64())
        table = self._arrow.table({"task_index": numbers, "task": list(self._tasks)})
        return table.replace_schema_metadata({"pandas": json.dumps(described)})

    def _info(self) -> dict[str, Any]:
        counters = {
            name: {"dtype": "float32" if name == "timestamp" else "int64", "shape": [1]}
            for name in COUNTERS
        }
        described = {n: v | {"names": None} for n, v in counters.items()}
        return {
            "codebase_version": VERSION,
            "fps": self.fps,
            "features": {n: self._described(n, f) for n, f in self.features.items()} | described,
            "total_episodes": len(self._episodes),
            "total_frames": self._steps,
            "total_tasks": len(self._tasks),
            "chunks_size": CHUNK,
            "data_files_size_in_mb": DATA_MB,
            "video_files_size_in_mb": VIDEO_MB,
            "data_path": DATA_PATH,
            "video_path": VIDEO_PATH if self._videos else None,
            "robot_type": self.robot or None,
            "splits": {"train": f"0:{len(self._episodes)}"},
        }

    def _described(self, name: str, feature: Column | Camera) -> dict[str, Any]:
        if isinstance(feature, Column):
            return {"dtype": feature.dtype, "shape": list(feature.shape), "names": feature.names}
        height, width = feature.height, feature.width
        out: dict[str, Any] = {
            "dtype": "video" if name in self._videos else "image",
            "shape": [height, width, 3],
            "names": ["height", "width", "channels"],
        }
        if name in self._videos:
            out["info"] = {
                "video.height": height,
                "video.width": width,
                "video.codec": self.codec,
                "video.pix_fmt": PIXELS,
                "is_depth_map": False,
                "video.fps": self.fps,
                "video.channels": 3,
                "has_audio": False,
            }
        return out


def _check_sizes(features: Mapping[str, Column | Camera]) -> None:
    for name, feature in features.items():
        if isinstance(feature, Camera) and (feature.height % 2 or feature.width % 2):
            raise DatasetError(
                f"{name}: {feature.height} x {feature.width} pixels, expected even sizes for a "
                "video; without loss (lossless 1) any size can be written"
            )


class _Encoder:
    """A video file being written, one frame after another."""

    def __init__(self, path: Path, size: Sequence[int], fps: float, codec: str) -> None:
        name, options = CODECS[codec]
        os.environ.setdefault("SVT_LOG", "1")  # the AV1 encoder describes itself on stderr
        self._container = require("av").open(str(path), "w", format="mp4")
        rate = Fraction(fps).limit_denominator(10**6)
        self._stream = self._container.add_stream(name, rate=rate, options=KEYFRAMES | options)
        self._stream.height, self._stream.width = size
        self._stream.pix_fmt = PIXELS
        self._step = 1 / rate

    def write(self, frame: Any, number: int) -> None:
        """Add the frame that is shown ``number`` steps after the beginning."""
        frame.pts, frame.time_base = number, self._step
        self._container.mux(self._stream.encode(frame))

    def close(self) -> None:
        """Write what is left, and the file's table of contents."""
        try:
            self._container.mux(self._stream.encode(None))
        finally:
            self._container.close()
