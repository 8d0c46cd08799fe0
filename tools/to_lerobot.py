"""What demonstrations are called in a LeRobot dataset, and writing them there."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bc.demo_arrays import FILTER_KEYS
from bc.demos import DatasetError, Demos
from bc.lerobot.meta import Feature
from bc.lerobot.reader import FIXED, STATE, SURROUNDINGS, key_for
from bc.lerobot.writer import Camera, Column, LeRobotWriter
from common_utils.atomic import atomic_folder, atomic_json
from common_utils.progress import RunProgress

ROBOT_STATE = f"observation.{STATE}"
OWN = {key: name for name, key in FIXED.items()}
# attributes of a demonstration that are kept, if they are there
KEPT = ("ended", "success", "seed", "expert_seed", "attempt", "source_demo", "minari_episode")


def is_picture(source: Demos, name: str, key: str) -> bool:
    """Whether these are the pictures of a camera, as policies may read them."""
    if not (key.startswith("obs/") and key.endswith("_image")):
        return False
    found = source.stored(name, key)
    return found.ndim == 4 and found.dtype == np.uint8


def camera_of(key: str) -> str:
    """The camera whose pictures are at ``key``."""
    return key.removeprefix("obs/").removesuffix("_image")


def kept_attributes(source: Demos, name: str, lists: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """The attributes of a demonstration that a copy keeps, as plain values.

    lists: demonstration -> the filter keys that list it, which become an attribute too.
    """
    found = {key: source.attribute(name, "", key) for key in KEPT}
    plain = {k: v.item() if isinstance(v, np.generic) else v for k, v in found.items()}
    kept = {k: v for k, v in plain.items() if isinstance(v, (str, int, float, bool))}
    return kept | ({FILTER_KEYS: json.dumps(lists[name])} if name in lists else {})


class Names:
    """Which arrays are written, and what they are called.

    Attributes: ``keys`` (feature -> key), ``left_out`` (keys of arrays that hold no numbers),
    ``made_of`` ("prop" or "state": what ``observation.state`` is put together from; "": it is an
    array of the source).
    """

    def __init__(self, source: Demos, name: str) -> None:
        self.keys: dict[str, str] = {}
        self.left_out: list[str] = []
        found = source.all_keys(name)
        self._pictures = [k for k in found if is_picture(source, name, k)]
        # lerobot's policies on pictures read observation.state, so it must not hold what only a
        # simulator knows
        self._swapped = bool(self._pictures) and "obs/prop" in found
        for key in found:
            stored = source.stored(name, key)
            if key in self._pictures or (stored.dtype.kind in "fiub" and stored.ndim):
                self.keys[self._feature(key)] = key
            else:
                self.left_out.append(key)
        self.made_of = "" if ROBOT_STATE in self.keys else self._made_of(source, name)
        if source.keys.state:
            self.made_of = "state"
        if self.made_of:
            self.keys[ROBOT_STATE] = f"obs/{self.made_of}"

    def _feature(self, key: str) -> str:
        if key in OWN:
            return OWN[key]
        if key in self._pictures:
            return f"observation.images.{_plain(camera_of(key))}"
        if self._swapped and key in ("obs/prop", "obs/state"):
            return ROBOT_STATE if key == "obs/prop" else f"observation.{SURROUNDINGS}"
        for prefix, place in (("obs/", "observation."), ("infos/", "next.")):
            if key.startswith(prefix):
                return place + _plain(key.removeprefix(prefix))
        return _plain(key)

    def _made_of(self, source: Demos, name: str) -> str:
        if self._pictures and source.has_prop(name):
            return "prop"
        try:
            source.vector(name, "state")
        except DatasetError:  # the keys are not known; the single arrays are written all the same
            return ""
        return "state"

    def array(self, source: Demos, name: str, feature: str) -> np.ndarray:
        """[T, ...], in the type in which it is written; pictures uint8 [T, 3, H, W]."""
        key = self.keys[feature]
        if key in self._pictures:
            return source.images(name, camera_of(key))
        if feature == ROBOT_STATE and self.made_of:
            return source.vector(name, self.made_of)
        found = source.array(name, key)
        if feature == "next.done" or feature == "next.success":
            return found.astype(bool)
        single = feature in ("action", ROBOT_STATE, "next.reward")
        return found.astype(np.float32) if single else found

    def stated(self) -> dict[str, str]:
        """Features whose key does not follow from their name."""
        kinds = {n: "image" if k in self._pictures else "float32" for n, k in self.keys.items()}
        usual = {n: key_for(Feature(n, kind, ())) for n, kind in kinds.items()}
        return {n: key for n, key in self.keys.items() if usual[n] != key}


def counted(names: Sequence[str]) -> Iterator[str]:
    """The demonstrations one by one, with a bar that shows how far it is."""
    with RunProgress(len(names), "demonstrations") as progress:
        for number, name in enumerate(names, 1):
            yield name
            progress.update(number)


def _plain(name: str) -> str:
    return name.replace("/", ".")  # lerobot makes paths of the names


def write(
    source: Demos, out: Path, *, fps: float, codec: str, tasks: Mapping[str, str],
    lists: Mapping[str, Sequence[str]],
) -> list[str]:  # fmt: skip
    """Write ``source`` as the new folder ``out``; returns notes.

    By demonstration: ``tasks`` in words, ``lists``: the filter keys that list it.
    """
    names = Names(source, source.names[0])
    first = {n: names.array(source, source.names[0], n) for n in names.keys}
    features = {n: _described(names.keys[n] in names._pictures, v) for n, v in first.items()}
    attributes: list[dict[str, Any]] = []
    robots = (source.env_args.get("env_kwargs") or {}).get("robots") or ""
    robot = "+".join(robots) if isinstance(robots, list) else str(robots)
    with atomic_folder(out) as folder:
        with LeRobotWriter(folder, features, fps, codec, robot) as writer:
            for name in counted(source.names):
                arrays = {n: names.array(source, name, n) for n in names.keys}
                _check(source, name, names, arrays, first)
                writer.add(arrays, tasks[name])
                attributes.append(kept_attributes(source, name, lists))
            writer.extra = {"keys": names.stated(), "attributes": attributes}
        if source.env_args:
            atomic_json(source.env_args, folder / "env_cfg.json")
    return [f"not written, since no numbers: {', '.join(names.left_out)}"] if names.left_out else []


def _described(picture: bool, array: np.ndarray) -> Column | Camera:
    if picture:
        return Camera(*array.shape[2:])
    return Column(str(array.dtype), array.shape[1:] or (1,))


def _check(
    source: Demos, name: str, names: Names, arrays: Mapping[str, np.ndarray],
    first: Mapping[str, np.ndarray],
) -> None:  # fmt: skip
    """Raise DatasetError unless the arrays are as long as each other, and as wide as the first."""
    for feature, array in arrays.items():
        if len(array) != source.length(name) or array.shape[1:] != first[feature].shape[1:]:
            raise source.error(
                name, names.keys[feature], f"has shape {list(array.shape)}, expected "
                f"{[source.length(name), *first[feature].shape[1:]]} (as {source.names[0]})"
            )  # fmt: skip
