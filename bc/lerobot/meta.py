"""What describes a LeRobot dataset (v3.0): ``meta/info.json`` and ``meta/episodes``, checked.

    meta/info.json                      version, fps, features {name: {dtype, shape, names}}, totals
    meta/episodes/chunk-*/file-*.parquet   a row per episode: length, tasks, and which files hold it
    data/chunk-*/file-*.parquet         a row per step: numbers, and pictures that are no video
    videos/{feature}/chunk-*/file-*.mp4 pictures; a file holds many episodes, one after another

The layout is that of https://huggingface.co/docs/lerobot/lerobot-dataset-v3. Nothing in these files
is trusted: paths stay in the folder, and sizes are compared with what is there.
"""

from __future__ import annotations

import json
import math
import re
import string
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bc.demos import DatasetError
from bc.lerobot import parquet
from common_utils.env_args import shown
from common_utils.plain_file import read_small_text

INFO = "meta/info.json"
STATS = "meta/stats.json"
EPISODES = "meta/episodes"
EXTRA = "meta/ibrl.json"  # what this program adds; lerobot does not read it
MAJOR = "v3."
MOST_TEXT = 2**26  # bytes of a JSON file
MOST_TEMPLATE = 200
PICTURES = ("video", "image")
# columns that lerobot adds to every dataset, and which say nothing beyond the order of the steps
COUNTERS = ("timestamp", "frame_index", "episode_index", "index", "task_index")


def fault(root: Path, place: str, what: str) -> DatasetError:
    """A DatasetError about a file or feature of the dataset."""
    return DatasetError(f"'{root}', '{place}': {what}")


@dataclass(frozen=True)
class Feature:
    """One entry of ``features``: ``shape`` of a step (pictures: as declared, in either order)."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    names: Any = None
    depth: bool = False

    @property
    def is_picture(self) -> bool:
        """Whether it is a camera's colour pictures."""
        return self.dtype in PICTURES and not self.depth

    @property
    def picture_size(self) -> tuple[int, int]:
        """(height, width); the channels are the first or the last axis, by ``names``."""
        names = self.names if isinstance(self.names, list) else []
        first = "channel" in str(names[0]) if names else self.shape[0] == 3 != self.shape[2]
        return (self.shape[1], self.shape[2]) if first else (self.shape[0], self.shape[1])


@dataclass(frozen=True)
class Clip:
    """An episode's part of a video: it begins ``start`` seconds into the file."""

    path: Path
    start: float


@dataclass(frozen=True)
class Episode:
    """One episode of ``length`` steps, and where it lies."""

    index: int
    length: int
    data: Path
    clips: dict[str, Clip]
    tasks: list[str]


@dataclass(frozen=True)
class Info:
    """``meta/info.json``, checked."""

    root: Path
    fps: float
    features: dict[str, Feature]
    data_path: str
    video_path: str
    episodes: int
    frames: int
    facts: dict[str, Any] = field(default_factory=dict)  # version, robot: for people


def is_dataset(path: Path) -> bool:
    """Whether ``path`` looks like a LeRobot dataset, of any version."""
    return (path / INFO).is_file()


def read_json(root: Path, place: str) -> dict[str, Any]:
    """A JSON object in the folder; DatasetError if it is missing or something else."""
    try:
        found = json.loads(read_small_text(root / place, MOST_TEXT))
    except (OSError, ValueError, RecursionError) as error:
        what = error.strerror if isinstance(error, OSError) else f"not valid JSON: {error}"
        raise fault(root, place, f"cannot be read: {what}") from error
    if not isinstance(found, dict):
        raise fault(root, place, f"expected a JSON object, got {shown(found)}")
    return found


def read_info(root: Path) -> Info:
    """The description of the dataset in ``root``; DatasetError for other versions, bad fields."""
    found = read_json(root, INFO)
    version = found.get("codebase_version")
    if not isinstance(version, str) or not version.startswith(MAJOR):
        raise fault(
            root, INFO, f"codebase_version is {shown(version)}, expected {MAJOR}x; lerobot "
            "converts older datasets: python -m lerobot.scripts.convert_dataset_v21_to_v30"
        )  # fmt: skip
    fps = found.get("fps")
    if fps is None or not _is_number(fps) or not 0 < fps < 1e6:
        raise fault(root, INFO, f"fps is {shown(fps)}, expected a number of steps per second")
    features = found.get("features")
    if not isinstance(features, dict) or not features:
        raise fault(root, INFO, f"features is {shown(features)}, expected an object of features")
    return Info(
        root,
        float(fps),
        {name: _feature(root, name, value) for name, value in features.items()},
        _template(root, found, "data_path", ("chunk_index", "file_index")),
        _template(root, found, "video_path", ("video_key", "chunk_index", "file_index")),
        _count(root, found, "total_episodes"),
        _count(root, found, "total_frames"),
        {"LeRobot": version, "fps": fps, "robot_type": found.get("robot_type")},
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _count(root: Path, found: dict[str, Any], key: str) -> int:
    value = found.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise fault(root, INFO, f"{key} is {shown(value)}, expected a number of at least 1")
    return value


def _feature(root: Path, name: str, value: Any) -> Feature:
    where = f"features.{name}"
    if not isinstance(value, dict) or not isinstance(value.get("dtype"), str):
        raise fault(root, INFO, f"{where} is {shown(value)}, expected an object with dtype, shape")
    dtype, shape = value["dtype"], value.get("shape")
    sizes: list[Any] = shape if isinstance(shape, list) else [None]
    if not all(isinstance(n, int) and not isinstance(n, bool) and 0 < n < 2**31 for n in sizes):
        raise fault(root, INFO, f"{where}.shape is {shown(shape)}, expected a list of sizes")
    if dtype in PICTURES and len(sizes) != 3:
        raise fault(
            root, INFO, f"{where}.shape is {shown(shape)}, expected [height, width, channels]"
        )
    info = value.get("info") or value.get("video_info") or {}
    depth = isinstance(info, dict) and (info.get("is_depth_map") or info.get("video.is_depth_map"))
    if dtype in PICTURES and not depth and 3 not in (sizes[0], sizes[-1]):
        raise fault(root, INFO, f"{where}.shape is {shown(shape)}, expected 3 channels (RGB)")
    return Feature(name, dtype, tuple(sizes), value.get("names"), bool(depth))


def _template(root: Path, found: dict[str, Any], key: str, fields: tuple[str, ...]) -> str:
    """A path with places for numbers, and nothing else that ``str.format`` would do."""
    text = found.get(key)
    if text is None and key == "video_path":
        return ""
    try:
        if not isinstance(text, str) or len(text) > MOST_TEMPLATE:
            raise ValueError
        parts = [part for part in string.Formatter().parse(text) if part[1] is not None]
        plain = all(not part[3] and re.fullmatch(r"(0?\d?d)?", part[2] or "") for part in parts)
        if not plain or not {part[1] for part in parts} <= set(fields):
            raise ValueError
    except ValueError:
        places = ", ".join(f"{{{name}}}" for name in fields)
        raise fault(
            root, INFO, f"{key} is {shown(text)}, expected a path with the places {places}"
        ) from None
    return text


# ---------------------------------------------------------------- episodes


def read_episodes(info: Info) -> list[Episode]:
    """The dataset's episodes in order; DatasetError unless they and their files are there."""
    root = info.root
    videos = [f.name for f in info.features.values() if f.dtype == "video" and f.is_picture]
    columns = ["episode_index", "length", "tasks", "data/chunk_index", "data/file_index"]
    for name in videos:
        columns += [f"videos/{name}/{k}" for k in ("chunk_index", "file_index", "from_timestamp")]
    rows: list[dict[str, Any]] = []
    files = sorted((root / EPISODES).glob("*/*.parquet"))
    if not files:
        raise fault(root, EPISODES, "missing, or without parquet files; expected a row per episode")
    for path in files:
        rows += parquet.rows(root, path, columns)
    if len(rows) != info.episodes:
        raise fault(
            root, EPISODES, f"has {len(rows)} episodes, but total_episodes of {INFO} is "
            f"{info.episodes}"
        )  # fmt: skip
    episodes = [_episode(info, number, row, videos) for number, row in enumerate(rows)]
    if (total := sum(e.length for e in episodes)) != info.frames:
        raise fault(
            root, EPISODES, f"has {total} steps in all, but total_frames of {INFO} is {info.frames}"
        )
    return episodes


def _episode(info: Info, number: int, row: dict[str, Any], videos: list[str]) -> Episode:
    root, place = info.root, f"{EPISODES}, row {number}"
    numbers = ["episode_index", "length", "data/chunk_index", "data/file_index"]
    for name in videos:
        numbers += [f"videos/{name}/chunk_index", f"videos/{name}/file_index"]
    for key in numbers:
        if not isinstance(row[key], int) or row[key] < 0:
            raise fault(root, place, f"{key} is {shown(row[key])}, expected a number")
    if row["episode_index"] != number or not row["length"]:
        raise fault(
            root, place, f"episode_index {row['episode_index']} of {row['length']} steps, expected "
            f"episode {number} of at least 1 step"
        )  # fmt: skip
    clips = {}
    for name in videos:
        start = row[f"videos/{name}/from_timestamp"]
        if not _is_number(start) or start < 0:
            raise fault(root, place, f"videos/{name}/from_timestamp is {shown(start)}, expected s")
        clips[name] = Clip(_file(info, info.video_path, f"videos/{name}", row, name), float(start))
    tasks = row["tasks"] if isinstance(row["tasks"], list) else []
    data = _file(info, info.data_path, "data", row)
    return Episode(number, row["length"], data, clips, [str(task) for task in tasks])


def _file(info: Info, template: str, kind: str, row: dict[str, Any], video: str = "") -> Path:
    """The file that holds a part of an episode, which is a regular file in the folder."""
    numbers = {key: row[f"{kind}/{key}"] for key in ("chunk_index", "file_index")}
    relative = template.format(**numbers, **({"video_key": video} if video else {}))
    path = Path(relative)
    if not relative or path.is_absolute() or ".." in path.parts or "\0" in relative:
        raise fault(
            info.root, INFO, f"{kind} of an episode is '{relative}', expected a path inside"
        )
    if not (info.root / path).is_file():
        raise fault(info.root, relative, "missing, but an episode lies in it (meta/episodes)")
    return info.root / path


def read_extra(info: Info) -> dict[str, Any]:
    """What this program added when it wrote the dataset; {} if it did not.

    ``keys``: feature -> the key that it had; ``attributes``: one object per episode.
    """
    if not (info.root / EXTRA).is_file():
        return {}
    found = read_json(info.root, EXTRA)
    keys, attributes = found.get("keys", {}), found.get("attributes", [])
    texts = isinstance(keys, dict) and all(isinstance(v, str) for v in keys.values())
    objects = isinstance(attributes, list) and all(isinstance(v, dict) for v in attributes)
    if not texts or not objects:
        raise fault(info.root, EXTRA, "expected keys {feature: key} and attributes [{...}, ...]")
    return {"keys": keys, "attributes": attributes}
