"""Reading LeRobot datasets (v3.0) as demonstrations: a local folder, its episodes in order.

    action -> actions                     next.reward -> rewards        next.done -> dones
    observation.images.{camera}, or any other picture -> obs/{camera}_image
    observation.{x} -> obs/{x}            next.{x} -> infos/{x}         anything else -> itself

unless the dataset was written by this program, which kept the keys (``meta/ibrl.json``). Only the
columns that are asked for are read, and only those frames are decoded.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from bc.dataset_config import KeyOptions
from bc.demos import DatasetError, Demos, Stored
from bc.lerobot.meta import (
    COUNTERS,
    EXTRA,
    INFO,
    STATS,
    Episode,
    Feature,
    fault,
    read_episodes,
    read_extra,
    read_info,
    read_json,
)
from bc.lerobot.parquet import ParquetColumns
from bc.lerobot.video import VideoFault, Videos
from bc.pictures import PictureLayout
from common_utils.env_args import read_env_args
from common_utils.robomimic_keys import STATE_KEYS

STATE, SURROUNDINGS = "state", "environment_state"
FIXED = {"action": "actions", "next.reward": "rewards", "next.done": "dones"}
PREFIXES = (("observation.", "obs/"), ("next.", "infos/"))


def key_for(feature: Feature) -> str:
    """The key in the HDF5 layout of a feature (see above)."""
    name = feature.name
    if feature.is_picture:
        camera = name.removeprefix("observation.").removeprefix("images.")
        return f"obs/{camera}_image"
    for prefix, place in PREFIXES:
        if name not in FIXED and name.startswith(prefix):
            return place + name.removeprefix(prefix)
    return FIXED.get(name, name)


class LeRobotDemos(Demos):
    """An open dataset; demonstrations are called ``episode_{i}``."""

    def __init__(self, path: str | Path, keys: KeyOptions | None = None) -> None:
        self.path, self.keys = Path(path), keys or KeyOptions()
        self.meta = read_info(self.path)
        self.fps = self.meta.fps
        self._episodes = {f"episode_{e.index}": e for e in read_episodes(self.meta)}
        self.names = list(self._episodes)
        self._extra = read_extra(self.meta)
        self.notes: list[str] = []
        self._features = self._presented()
        self._own = {feature.name: key for key, feature in self._features.items()}
        try:
            self.env_args = read_env_args({}, self.path / "env_cfg.json")
        except ValueError as error:
            raise DatasetError(f"'{self.path}', {error}") from error
        self._files: dict[Path, ParquetColumns] = {}
        self._columns: dict[tuple[Path, str], np.ndarray] = {}
        self._places: dict[Path, dict[int, slice]] = {}
        self._videos = Videos()
        try:
            for episode in self._episodes.values():
                self._rows(episode)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close all files; safe to call twice."""
        self._videos.close()
        while self._files:
            self._files.popitem()[1].close()

    # ------------------------------------------------------------ keys

    def _presented(self) -> dict[str, Feature]:
        """Key -> feature. Features that hold no numbers are listed in ``notes``."""
        stated = self._extra.get("keys", {})
        out: dict[str, Feature] = {}
        skipped = []
        for name, feature in self.meta.features.items():
            key = stated.get(name) or key_for(feature)
            if name in COUNTERS:
                continue
            if feature.depth or feature.dtype in ("string", "language"):
                skipped.append(name)
            elif key in out:
                raise fault(self.path, INFO, f"features {out[key].name} and {name} are both {key}")
            else:
                out[key] = feature
        if skipped:
            self.notes.append(f"not read, since neither numbers nor colours: {', '.join(skipped)}")
        attributes = self._extra.get("attributes", [])
        if attributes and len(attributes) != len(self._episodes):
            self.notes.append(f"{EXTRA} is of {len(attributes)} episodes, and is not used")
            self._extra["attributes"] = []
        return out

    def facts(self) -> dict[str, Any]:
        """The version, and the robot."""
        return {key: value for key, value in self.meta.facts.items() if value is not None}

    def key_of(self, own: str, obs: bool = True) -> str:
        """The key of a feature, by the name that it has in the dataset."""
        if own not in self._own:
            have = ", ".join(self._own)
            raise self.error(None, own, f"no such feature; it has {have}")
        return self._own[own]

    def all_keys(self, name: str) -> list[str]:
        """The keys of all features, which all episodes have."""
        return sorted(self._features)

    def has(self, name: str, key: str) -> bool:
        """Whether there is a feature for ``key``."""
        return key in self._features

    def usual_keys(self, name: str, kind: str) -> Sequence[str]:
        """robosuite's keys if they are there; else ``observation.state``, to which
        ``observation.environment_state`` is added for the state."""
        known = STATE_KEYS.get(self.env_name, ()) if kind == "state" else ()
        if known and all(self.has(name, f"obs/{k}") for k in known):
            return known
        if self.has(name, f"obs/{kind}"):
            extra = kind == "state" and self.has(name, f"obs/{SURROUNDINGS}")
            return (kind, SURROUNDINGS) if extra else (kind,)
        if kind == "prop" and self.has(name, f"obs/{STATE}"):
            return (STATE,)
        return super().usual_keys(name, kind)

    def _feature(self, name: str, key: str) -> Feature:
        if key not in self._features:
            pictures = [f.name for f in self._features.values() if f.is_picture]
            if key.endswith("_image") and pictures:
                camera = key.removeprefix("obs/").removesuffix("_image")
                hint = (
                    f"its pictures are {', '.join(pictures)} (dataset.keys.cameras "
                    f"{camera}={pictures[0]})"
                )
            else:
                option = {
                    "rewards": "; dataset.keys.reward chooses",
                    "actions": "; dataset.keys.action chooses",
                }
                names = ", ".join(f.name for f in self._features.values())
                hint = f"its features are {names}{option.get(key, '')}"
            raise self.error(name, key, f"missing; {hint}")
        return self._features[key]

    @property
    def _range_hint(self) -> str:
        """The range that ``meta/stats.json`` states, as options."""
        try:
            stats = read_json(self.path, STATS)["action"]
            low, high = ([float(f"{x:.4g}") for x in stats[k]] for k in ("min", "max"))
        except (DatasetError, KeyError, TypeError, ValueError):
            return "; dataset.action_low and dataset.action_high map another range"
        return (
            f'; the dataset\'s range is --dataset.action_low "{low}" --dataset.action_high "{high}"'
        )

    # ------------------------------------------------------------ numbers

    def _file(self, path: Path) -> ParquetColumns:
        if path not in self._files:
            self._files[path] = ParquetColumns(self.path, path)
        return self._files[path]

    def _column(self, path: Path, feature: str, shape: tuple[int, ...]) -> np.ndarray:
        if (path, feature) not in self._columns:
            self._columns[path, feature] = self._file(path).numbers(feature, shape)
        return self._columns[path, feature]

    def _rows(self, episode: Episode) -> slice:
        """An episode's rows in its file."""
        path = episode.data
        if path not in self._places:
            numbers = self._column(path, "episode_index", (1,))[:, 0]
            starts = np.flatnonzero(np.diff(numbers, prepend=numbers[:1] - 1))
            ends = np.append(starts[1:], len(numbers))
            self._places[path] = {
                int(numbers[a]): slice(int(a), int(b)) for a, b in zip(starts, ends, strict=True)
            }
        rows = self._places[path].get(episode.index, slice(0, 0))
        if rows.stop - rows.start != episode.length:
            place, found = str(path.relative_to(self.path)), rows.stop - rows.start
            raise fault(
                self.path, place, f"has {found} rows of episode {episode.index}, but meta/episodes "
                f"says {episode.length} steps"
            )  # fmt: skip
        return rows

    def _shape(self, key: str, feature: Feature) -> tuple[int, ...]:
        """Shape of a step: vectors are vectors even of one number, other single numbers are not."""
        vector = key == "actions" or key.startswith("obs/")
        return () if feature.shape == (1,) and not vector else feature.shape

    def stored(self, name: str, key: str) -> Stored:
        """What lies at ``key``; pictures as they are delivered."""
        feature, episode = self._feature(name, key), self._episodes[name]
        if feature.is_picture:
            shape: tuple[int, ...] = (3, *feature.picture_size)
            dtype = np.dtype(np.uint8)
        else:
            shape = self._shape(key, feature)
            try:
                dtype = np.dtype(feature.dtype)
            except TypeError:
                raise self.error(
                    name, key, f"dtype of {feature.name} is '{feature.dtype}' (meta/info.json), "
                    "expected one of numbers"
                ) from None  # fmt: skip
        return Stored((episode.length, *shape), dtype, self._bytes(feature, episode))

    def _bytes(self, feature: Feature, episode: Episode) -> int:
        """An episode's share of its file, by its length."""
        if feature.name in episode.clips:
            path = episode.clips[feature.name].path
            size, steps = path.stat().st_size, self._video_steps[path]
        else:
            file = self._file(episode.data)
            size, steps = file.stored(feature.name), file.rows
        return size * episode.length // steps

    @cached_property
    def _video_steps(self) -> Counter[Path]:
        """The number of steps in each video."""
        found: Counter[Path] = Counter()
        for episode in self._episodes.values():
            for clip in episode.clips.values():
                found[clip.path] += episode.length
        return found

    def array(self, name: str, key: str) -> np.ndarray:
        """Numbers as they are stored; pictures as uint8 [T, 3, H, W]."""
        feature, episode = self._feature(name, key), self._episodes[name]
        if feature.is_picture:
            return self._pictures(name, key, None)
        column = self._column(episode.data, feature.name, feature.shape)
        return column[self._rows(episode)].reshape(episode.length, *self._shape(key, feature))

    def attribute(self, name: str, key: str, attr: str) -> Any:
        """ "tasks" and what the writer kept; "success" as well if ``next.success`` is recorded."""
        if key:
            return None
        episode = self._episodes[name]
        kept = self._extra.get("attributes") or []
        if kept and attr in kept[episode.index]:
            return kept[episode.index][attr]
        if attr == "tasks":
            return ", ".join(episode.tasks)
        if attr == "success" and self.has(name, "infos/success"):
            return bool(np.any(self.numbers(name, "infos/success", 1, "fiub")))
        return None

    # ------------------------------------------------------------ pictures

    def layout(self, name: str, camera: str) -> PictureLayout:
        """As they are delivered: channels first, one step each."""
        key = self.image_key(camera)
        feature = self._feature(name, key)
        if not feature.is_picture:
            raise self.error(name, key, f"{feature.name} is {feature.dtype}, expected pictures")
        return PictureLayout(False, 1, *feature.picture_size)

    def images(self, name: str, camera: str, rows: np.ndarray | None = None) -> np.ndarray:
        """uint8 [N, 3, H, W], decoded; rows ascending, unique."""
        self.layout(name, camera)
        return self._pictures(name, self.image_key(camera), rows)

    def _pictures(self, name: str, key: str, rows: np.ndarray | None) -> np.ndarray:
        feature, episode = self._features[key], self._episodes[name]
        rows = np.arange(episode.length) if rows is None else rows
        shape = (len(rows), 3, *feature.picture_size)
        self.room(name, key, int(np.prod(shape)))
        out = np.empty(shape, np.uint8)
        try:
            if feature.name in episode.clips:
                clip = episode.clips[feature.name]
                video = self._videos.get(clip.path, feature.picture_size, self.meta.fps)
                video.read([clip.start + int(row) / self.meta.fps for row in rows], out)
            elif len(rows):
                self._unpack(episode, feature, rows, out)
        except VideoFault as error:
            place = clip.path.relative_to(self.path) if feature.name in episode.clips else key
            raise self.error(name, str(place), str(error)) from error
        return out

    def _unpack(
        self, episode: Episode, feature: Feature, rows: np.ndarray, out: np.ndarray
    ) -> None:
        """Decode pictures that lie in the table, as PNG or JPEG."""
        begin, (height, width) = self._rows(episode).start, feature.picture_size
        first, last = int(rows[0]), int(rows[-1]) + 1
        packed = self._file(episode.data).pictures(feature.name, begin + first, begin + last)
        for place, row in zip(out, rows.tolist(), strict=True):
            try:
                with Image.open(io.BytesIO(packed[row - first])) as picture:
                    if (picture.height, picture.width) != (height, width):
                        raise VideoFault(
                            f"step {row} has {picture.height} x {picture.width} pixels, expected "
                            f"{height} x {width} (meta/info.json)"
                        )
                    place[:] = np.asarray(picture.convert("RGB")).transpose(2, 0, 1)
            except VideoFault:
                raise
            except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
                raise VideoFault(f"step {row} cannot be decoded (damaged?): {error}") from error
