"""Minari datasets in their HDF5 format: the folder of one dataset, or the folder ``data`` in it.

    data/metadata.json                     env_spec, action_space, ... (JSON)
    data/main_data.hdf5
        episode_{i}/observations           [T + 1, D], or a group of such (nested)
        episode_{i}/actions                [T, A], within the action space
        episode_{i}/rewards, terminations, truncations   [T]
        episode_{i}/infos/{key}            [T + 1] or [T]

Actions are mapped from their bounds to [-1, 1]. The observation after the last action is dropped.
Minari itself is not needed, and nothing that the dataset names is imported. For the tasks of D4RL,
``tools.convert_minari`` also gives the state that suite d4rl plays with.
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from bc.dataset_config import KeyOptions
from bc.demo_arrays import Stored, few
from bc.demo_store import natural
from bc.demos import DatasetError, Demos
from bc.pictures import PictureLayout, layout_of
from common_utils import h5_read
from common_utils.demo_file import CFG_NAME
from common_utils.env_args import read_env_args, shown
from common_utils.plain_file import read_small_text
from common_utils.success_rule import TERMINATED, TRUNCATED

METADATA, MAIN = "metadata.json", "main_data.hdf5"
MOST_TEXT = 2**28  # bytes: spaces of pictures list a bound for each number
MOST_SIDE = 2**13  # pixels of a picture
JPEG = b"\xff\xd8\xff"
FLAGS = ("terminations", "truncations")


def is_minari(path: Path) -> bool:
    """Whether ``path`` is a dataset's folder, or the folder ``data`` in it."""
    return any((folder / METADATA).is_file() for folder in (path / "data", path))


class MinariDemos(Demos):
    """The episodes of a Minari dataset."""

    def __init__(self, path: str | Path, keys: KeyOptions | None = None) -> None:
        self.path, self.keys, self.notes = Path(path), keys or KeyOptions(), []
        inner = self.path / "data"
        self._folder = inner if (inner / METADATA).is_file() else self.path
        self._meta = self._read_metadata()
        self._bounds = self._action_bounds()
        self.env_args = self._env_args()
        try:
            self._file = h5_read.open_file(self._folder / MAIN)
        except OSError as error:
            raise DatasetError(f"'{self._folder}/{MAIN}' cannot be read: {error}") from error
        self._leaves: dict[str, dict[str, h5py.Dataset]] = {}
        try:
            with self._guard(None, MAIN):
                found = h5_read.names(self._file)
            self.names = sorted((n for n in found if n.startswith("episode_")), key=natural)
            total = self._meta.get("total_episodes")
            if not self.names or total != len(self.names):
                raise self.error(
                    None, METADATA, f"total_episodes is {shown(total)}, but {MAIN} has "
                    f"{len(self.names)} groups episode_*"
                )  # fmt: skip
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the file; safe to call twice."""
        self._file.close()

    # ------------------------------------------------------------ what the dataset says of itself

    def _read_metadata(self) -> dict[str, Any]:
        place = self._folder / METADATA
        try:
            found = json.loads(read_small_text(place, MOST_TEXT))
        except (OSError, ValueError, RecursionError) as error:
            raise DatasetError(f"'{place}' cannot be read: {error}") from error
        if not isinstance(found, dict):
            raise DatasetError(f"'{place}': found {shown(found)}, expected a JSON object")
        kind = found.get("data_format", "hdf5")
        if kind != "hdf5":
            raise DatasetError(f"'{place}': data_format: found {shown(kind)}, expected 'hdf5'")
        return found

    def _object(self, field: str) -> dict[str, Any]:
        """A field of the metadata that is a JSON object in a text; {} without it."""
        text = self._meta.get(field)
        try:
            found = {} if text is None else json.loads(text)
        except (TypeError, ValueError, RecursionError):
            found = None
        if not isinstance(found, dict):
            raise self.error(None, METADATA, f"{field}: found {shown(text)}, expected JSON as text")
        return found

    def _env_args(self) -> dict[str, Any]:
        """Those that this program wrote next to the dataset, else its gymnasium environment."""
        try:
            if own := read_env_args({}, self.path / CFG_NAME):
                return own
        except ValueError as error:
            raise DatasetError(f"'{self.path}', {error}") from error
        name = self._object("env_spec").get("id")
        if not isinstance(name, str):
            return {}
        named = str(self._meta.get("dataset_id", ""))
        return {"env_name": name, "suite": "gymnasium", "minari_dataset": named}

    def _action_bounds(self) -> tuple[np.ndarray, np.ndarray] | None:
        """The bounds that become -1 and 1; None if they are that already, or not known."""
        space = self._object("action_space")
        if not space:
            return None
        if space.get("type") != "Box":
            raise self.error(
                None, METADATA, f"action_space: found {shown(space.get('type'))}, expected a Box"
            )
        try:
            low, high = (np.asarray(space[k], np.float64).ravel() for k in ("low", "high"))
            same = low.shape == high.shape and bool((low < high).all())
        except (KeyError, TypeError, ValueError):
            same = False
        if not same:
            raise self.error(None, METADATA, "action_space: expected low below high")
        if not (np.isfinite(low).all() and np.isfinite(high).all()):
            return None
        return None if (low == -1).all() and (high == 1).all() else (low, high)

    def facts(self) -> dict[str, Any]:
        """Who made it, and by what."""
        wanted = ("dataset_id", "minari_version", "algorithm_name", "author", "description")
        found = {key: self._meta.get(key) for key in wanted}
        found["action bounds"] = "-1 to 1, or not known" if self._bounds is None else " to ".join(
            str(end.tolist()) for end in self._bounds
        )  # fmt: skip
        return {key: value for key, value in found.items() if value is not None}

    # ------------------------------------------------------------ finding arrays

    def _found(self, name: str) -> dict[str, h5py.Dataset]:
        """Key -> dataset, of one episode."""
        if name not in self._leaves:
            with self._guard(name, "observations"):
                group = h5_read.find(self._file, name)
                if not isinstance(group, h5py.Group):
                    raise h5_read.Refused("is not a group, expected an episode")
                leaves = {}
                for place, dset in h5_read.datasets(group):
                    if isinstance(dset, Exception):
                        raise dset
                    if key := _key(place, dset):
                        leaves[key] = dset
            self._leaves[name] = leaves
        return self._leaves[name]

    def _dataset(self, name: str, key: str) -> h5py.Dataset:
        found = self._found(name)
        if key not in found:
            raise self.error(name, key, f"missing; there is {few(sorted(found), 20)}")
        with self._guard(name, key):
            h5_read.check(found[key])
        return found[key]

    def _steps(self, name: str) -> int:
        return int(self._dataset(name, "actions").shape[0])

    def all_keys(self, name: str) -> list[str]:
        """The keys of an episode's arrays; how it ended is the attribute "ended"."""
        return sorted(set(self._found(name)) - set(FLAGS))

    def usual_keys(self, name: str, kind: str) -> Sequence[str]:
        """The state is the one vector that is observed, if there is no more than one."""
        vectors = [k for k in self.obs_keys(name) if not k.endswith("_image")]
        known = list(super().usual_keys(name, kind))
        return vectors if kind == "state" and len(vectors) == 1 else known

    def stored(self, name: str, key: str) -> Stored:
        """What lies at ``key``: as many rows as there are actions."""
        dset, steps = self._dataset(name, key), self._steps(name)
        with self._guard(name, key):
            size = int(dset.id.get_storage_size())
            if key.endswith("_image") and _is_jpeg(dset):
                return Stored((len(dset) - 1, *_size(dset[0]), 3), np.dtype(np.uint8), size)
            shape, rows = tuple(dset.shape), len(dset)
        if key.startswith("obs/") or (key.startswith("infos/") and rows == steps + 1):
            rows -= 1  # the last observation; the first info, which is of the reset
        vector = len(shape) == 1 and (key == "actions" or key.startswith("obs/"))
        dtype = dset.dtype
        if key == "actions" and self._bounds is not None:
            dtype = np.dtype(np.float32)
        return Stored((rows, *((1,) if vector else shape[1:])), dtype, size)

    def array(self, name: str, key: str) -> np.ndarray:
        """The numbers of an episode's steps; actions mapped to [-1, 1]."""
        found = self.stored(name, key)
        self.room(name, key, 2 * found.nbytes)
        dset, rows = self._dataset(name, key), found.shape[0]
        with self._guard(name, key):
            last = dset[len(dset) - rows :] if key.startswith("infos/") else dset[:rows]
        array = np.asarray(last).reshape(found.shape)
        return self._scaled(name, array) if key == "actions" else array

    def _scaled(self, name: str, actions: np.ndarray) -> np.ndarray:
        if self._bounds is None:
            return actions
        low, high = self._bounds
        if actions.ndim != 2 or actions.shape[1] != low.size:
            raise self.error(
                name, "actions", f"have shape {list(actions.shape)}, action_space {low.size} bounds"
            )
        scaled: np.ndarray = (2 * (actions - low) / (high - low) - 1).astype(np.float32)
        return scaled

    @property
    def _range_hint(self) -> str:
        return " after mapping them from the action space (tools.convert_minari --clip_actions 1)"

    def attribute(self, name: str, key: str, attr: str) -> Any:
        """ "ended" by the last flags; others as minari stores them with an episode."""
        if key:
            return None
        if attr == "ended":
            for flag, said in zip(FLAGS, (TERMINATED, TRUNCATED), strict=True):
                if flag in self._found(name) and self.array(name, flag)[-1:].any():
                    return said
            return None
        with self._guard(name, attr):
            return self._file[name].attrs.get(attr)

    # ------------------------------------------------------------ pictures

    def layout(self, name: str, camera: str) -> PictureLayout:
        """How a camera's pictures are stored."""
        key = self.image_key(camera)
        found = self.stored(name, key)
        layout = layout_of(found.shape) if found.ndim == 4 and 0 not in found.shape else None
        if layout is None or layout.stack != 1 or found.dtype != np.uint8:
            raise self.error(
                name, key, f"expected uint8 pictures [T, H, W, 3], got {found.dtype}"
                f"{list(found.shape)}"
            )  # fmt: skip
        return layout

    def images(self, name: str, camera: str, rows: np.ndarray | None = None) -> np.ndarray:
        """uint8 [N, 3, H, W]; JPEG, as minari packs pictures, is decoded."""
        layout, key = self.layout(name, camera), self.image_key(camera)
        wanted = np.arange(self._steps(name)) if rows is None else np.asarray(rows)
        shape = (layout.height, layout.width, 3)
        self.room(name, key, 2 * len(wanted) * int(np.prod(shape)))
        dset = self._dataset(name, key)
        with self._guard(name, key):
            if not _is_jpeg(dset):
                frames = dset[wanted]
                return np.ascontiguousarray(
                    frames.transpose(0, 3, 1, 2) if layout.channels_last else frames
                )
            out = np.empty((len(wanted), 3, layout.height, layout.width), np.uint8)
            for frame, row in zip(out, wanted.tolist(), strict=True):
                frame[:] = _decoded(dset[row], shape).transpose(2, 0, 1)
        return out


def _key(place: str, dset: h5py.Dataset) -> str:
    """The key of what lies at ``place`` of an episode; "" for what is not used."""
    top, _, rest = place.partition("/")
    if top == "observations":
        own = rest.replace("/", ".")
        picture = _is_jpeg(dset) or (dset.dtype == np.uint8 and dset.ndim == 4)
        return f"obs/{own or 'pixels'}_image" if picture else f"obs/{own or 'state'}"
    if top == "infos":
        usable = dset.ndim == 1 and dset.dtype.kind in "fiub" and "/" not in rest
        return f"infos/{rest}" if usable else ""
    return place if place in ("actions", "rewards", *FLAGS) else ""


def _is_jpeg(dset: h5py.Dataset) -> bool:
    """Whether each row is a packed picture: bytes of any number, or padded to the longest."""
    if dset.dtype.kind == "O":
        return h5py.check_vlen_dtype(dset.dtype) == np.uint8
    if dset.dtype != np.uint8 or dset.ndim != 2 or not len(dset):
        return False
    h5_read.check(dset)
    return bool(dset[0].tobytes().startswith(JPEG))


def _picture(packed: np.ndarray) -> Any:
    from PIL import Image

    return Image.open(io.BytesIO(packed.tobytes()), formats=["JPEG"])


def _size(packed: np.ndarray) -> tuple[int, int]:
    """(height, width) of a packed picture, which is not decoded."""
    width, height = _picture(packed).size
    if max(width, height) > MOST_SIDE:
        raise h5_read.Refused(f"a picture of {width} x {height}, expected up to {MOST_SIDE} pixels")
    return height, width


def _decoded(packed: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    _size(packed)
    pixels = np.asarray(_picture(packed).convert("RGB"))
    if pixels.shape != shape:
        raise h5_read.Refused(f"a picture is {list(pixels.shape)}, the first is {list(shape)}")
    return pixels
