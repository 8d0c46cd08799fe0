"""Zarr replay buffers in Diffusion Policy's layout: a folder, or a zip file of it.

    data/{name}          [N, ...]: the steps of all episodes, one after another
    meta/episode_ends    int64 [E]: the step number at which each episode ends (exclusive)

``action`` are the actions, ``reward`` and ``done`` the rewards and dones, arrays of 4 axes (uint8,
or whole floats from 0 to 255) the pictures of a camera with their name, all others observations.
``tools.convert_dataset`` writes the key that an array has here as its attribute "key". Zarr formats
2 and 3, with zarr 2.18 or 3. Nothing is trusted: only codecs that numcodecs and zarr bring along
are run, never pickles, and sizes are compared with what is stored.
"""

from __future__ import annotations

import math
import warnings
import zipfile
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from bc.dataset_config import KeyOptions
from bc.demo_arrays import few
from bc.demos import DatasetError, Demos, Stored
from bc.pictures import PictureLayout, declared_size, layout_of
from bc.zarr_files import ZarrFiles, codecs
from common_utils import h5_read
from common_utils.env_args import read_env_args, shown
from common_utils.extras import how_to_install

ENDS = "meta/episode_ends"
MOST_EPISODES = 2**22
# numcodecs and zarr decode these without running code of the file's; "pickle" would
CODECS = {
    *("blosc", "zlib", "gzip", "bz2", "lz4", "lzma", "zstd", "shuffle", "delta", "bitround"),
    *("fixedscaleoffset", "quantize", "packbits", "crc32", "crc32c", "adler32", "fletcher32"),
    *("bytes", "transpose", "sharding_indexed", "astype"),
}
KEYS = {"action": "actions", "actions": "actions", "reward": "rewards", "rewards": "rewards"}
KEYS |= {"done": "dones", "dones": "dones"}


def is_replay(path: Path) -> bool:
    """Whether ``path`` is a Zarr group with a group ``meta``: a folder, or a zip file."""
    if path.is_dir():
        marks = (".zgroup", "zarr.json")
        return any((path / mark).is_file() for mark in marks)
    if path.suffix != ".zip" or not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as file:
        return bool({".zgroup", "zarr.json"} & set(file.namelist()))


class ZarrDemos(Demos):
    """Episodes of a Zarr replay buffer, as ``demo_0``, ``demo_1``, ..."""

    def __init__(self, path: str | Path, keys: KeyOptions | None = None) -> None:
        self.path, self.keys = Path(path), keys or KeyOptions()
        self.notes = []
        self._files = ZarrFiles(self.path)
        self._root = self._open()
        try:
            self.env_args = self._env_args()
            self._ends = self._episode_ends()
            self.names = [f"demo_{i}" for i in range(len(self._ends))]
            self._index = {name: i for i, name in enumerate(self.names)}
            self._arrays = self._find_arrays()
            if "actions" not in self._arrays and not self.keys.action:
                have = few(sorted(self._arrays))
                raise self.error(None, "data/action", f"missing; 'data' holds {have or 'nothing'}")
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close a zip file; safe to call twice."""
        self._files.close()

    # ------------------------------------------------------------ opening

    def _open(self) -> Any:
        try:
            import zarr
        except ImportError as error:
            raise DatasetError(
                f"'{self.path}': a Zarr replay buffer, but zarr cannot be imported ({error}); "
                f"{how_to_install('data')}"
            ) from error
        # a second description of all arrays, which is not the one that is checked here
        more: dict[str, Any] = (
            {} if zarr.__version__.startswith("2.") else {"use_consolidated": False}
        )
        with self._guard(None, "."), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about formats that may change one day
            if self.path.is_dir():
                return zarr.open_group(str(self.path), mode="r", **more)
            store = zarr.storage.ZipStore(str(self.path), mode="r")
            return zarr.open_group(store, mode="r", **more)

    def _env_args(self) -> dict[str, Any]:
        side = (self.path if self.path.is_dir() else self.path.parent) / "env_cfg.json"
        with self._guard(None, ".zattrs"):
            attrs = dict(self._root.attrs)
        try:
            return read_env_args(attrs, side)
        except ValueError as error:
            raise DatasetError(f"'{self.path}', {error}") from error

    def _episode_ends(self) -> np.ndarray:
        ends = self._numbers(ENDS)
        if ends.ndim != 1 or ends.dtype.kind not in "iu" or not 0 < len(ends) <= MOST_EPISODES:
            raise self.error(
                None, ENDS, f"found {ends.dtype} of shape {list(ends.shape)}, expected the step "
                "numbers at which episodes end"
            )  # fmt: skip
        ends = ends.astype(np.int64)
        if ends[0] <= 0 or (np.diff(ends) <= 0).any():
            wrong = int(np.argmax(np.diff(ends, prepend=0) <= 0))
            raise self.error(
                None, ENDS, f"episode {wrong} ends at step {ends[wrong]}, expected more than "
                f"{ends[wrong - 1] if wrong else 0}, where it begins"
            )  # fmt: skip
        return ends

    def _numbers(self, place: str) -> np.ndarray:
        found = self._checked(place)
        with self._guard(None, place):
            return np.asarray(found[:])

    def _find_arrays(self) -> dict[str, Any]:
        """Key -> array, of all that have the right length."""
        names = self._files.arrays("data")
        found: dict[str, Any] = {}
        self._places: dict[str, str] = {}
        total = int(self._ends[-1])
        for own in names:
            place = f"data/{own}"
            array = self._checked(place)
            if not array.ndim or array.shape[0] != total:
                raise self.error(
                    None, place, f"has shape {list(array.shape)}, expected {total} steps, as "
                    f"'{ENDS}' says"
                )  # fmt: skip
            key = self._key(place, own, array)
            if key in found:
                raise self.error(None, place, f"is '{key}', as another array is, expected one")
            found[key], self._places[key] = array, place
        return found

    def _key(self, place: str, own: str, array: Any) -> str:
        with self._guard(None, place):
            stated = dict(array.attrs).get("key")
        if isinstance(stated, str) and 0 < len(stated) < 200:
            return stated
        if array.ndim == 4:
            return f"obs/{own}_image"
        return KEYS.get(own, f"obs/{own}")

    def _checked(self, place: str) -> Any:
        """The array at ``place``; its codecs and sizes are checked before it is opened."""
        with self._guard(None, place):
            meta = self._files.meta(place)
            if meta is None:
                raise h5_read.Refused("missing; expected the layout of Diffusion Policy's replay")
            if unknown := sorted(codecs(meta) - CODECS):
                raise h5_read.Refused(
                    f"is packed by the codec '{unknown[0]}', which is not read; expected one "
                    "of zarr's own, such as blosc: write the array again with that"
                )
            found = self._root[place]
            if not hasattr(found, "dtype") or found.dtype.kind not in "fiub":
                what = getattr(found, "dtype", "a group")
                raise h5_read.Refused(f"found {what}, expected an array of numbers")
            self._check_size(place, found)
        return found

    def _check_size(self, place: str, array: Any) -> None:
        stored, parts = self._files.stored(place)
        unit = getattr(array, "shards", None) or array.chunks  # what is one file
        whole, part = (math.prod(s) * array.dtype.itemsize for s in (array.shape, unit))
        h5_read.Size(max(whole, part), stored).check(f"shape {list(array.shape)} of {array.dtype}")
        expected = math.prod(-(-n // c) for n, c in zip(array.shape, unit, strict=True))
        if parts < expected:
            # zarr leaves out what is all fill value; but so does a writer that was interrupted
            self.notes.append(
                f"{place}: {expected - parts} of its {expected} chunks are not stored, and are "
                f"read as {array.fill_value}"
            )

    # ------------------------------------------------------------ the contract of Demos

    def _rows(self, name: str) -> slice:
        number = self._index[name]
        return slice(int(self._ends[number - 1]) if number else 0, int(self._ends[number]))

    def _at(self, name: str, key: str) -> Any:
        if key not in self._arrays:
            raise self.error(name, key, f"missing; there is {few(sorted(self._arrays), 20)}")
        return self._arrays[key]

    def all_keys(self, name: str) -> list[str]:
        """The keys of all arrays: every episode has them."""
        return sorted(self._arrays)

    def facts(self) -> dict[str, Any]:
        """The name and storage of each array."""
        return {
            place: f"{'x'.join(map(str, array.chunks))} per chunk, read as {key}"
            for key, array in self._arrays.items()
            if (place := self._places[key])
        }

    def key_of(self, own: str, obs: bool = True) -> str:
        """The key of the array that is called ``own`` in the replay."""
        for key in (own, KEYS.get(own, ""), f"obs/{own}", f"obs/{own}_image"):
            if key in self._arrays:
                return key
        return super().key_of(own, obs)

    def stored(self, name: str, key: str) -> Stored:
        """What lies at ``key``; its share of the bytes on disk."""
        array, rows = self._at(name, key), self._rows(name)
        length = rows.stop - rows.start
        size = self._files.stored(self._places[key])[0] * length // int(self._ends[-1])
        return Stored((length, *array.shape[1:]), np.dtype(array.dtype), size)

    def array(self, name: str, key: str) -> np.ndarray:
        """The episode's rows as they are stored."""
        found = self.stored(name, key)
        self.room(name, key, found.nbytes)
        with self._guard(name, key):
            return np.asarray(self._at(name, key)[self._rows(name)])

    def attribute(self, name: str, key: str, attr: str) -> Any:
        """Those of episodes, which tools.convert_dataset keeps; arrays have none."""
        return None if key else self._attrs.get(attr, {}).get(name)

    @cached_property
    def _attrs(self) -> dict[str, dict[str, Any]]:
        with self._guard(None, ".zattrs"):
            found = dict(self._root.attrs).get("episodes", {})
        if not isinstance(found, dict) or not all(isinstance(x, dict) for x in found.values()):
            raise self.error(None, ".zattrs", f"episodes is {shown(found)}, expected an object")
        return found

    def layout(self, name: str, camera: str) -> PictureLayout:
        """How a camera's pictures are stored."""
        key = self.image_key(camera)
        array = self._at(name, key)
        size = declared_size(self.env_args, camera)
        layout = layout_of(array.shape, size) if array.ndim == 4 else None
        if layout is None or layout.stack != 1:
            raise self.error(
                name, key, f"expected pictures [N, H, W, 3] or [N, 3, H, W], got "
                f"{list(array.shape)}"
            )  # fmt: skip
        return layout

    def images(self, name: str, camera: str, rows: np.ndarray | None = None) -> np.ndarray:
        """uint8 [N, 3, H, W]."""
        layout, key = self.layout(name, camera), self.image_key(camera)
        array, mine = self._at(name, key), self._rows(name)
        count = mine.stop - mine.start if rows is None else len(rows)
        self.room(name, key, count * layout.height * layout.width * 3 * (1 + array.dtype.itemsize))
        with self._guard(name, key):
            if rows is None:
                frames = np.asarray(array[mine])
            else:
                frames = np.asarray(array.oindex[np.asarray(rows) + mine.start])
        if frames.dtype != np.uint8:
            if not ((frames >= 0) & (frames <= 255) & (frames == np.floor(frames))).all():
                raise self.error(
                    name, key, f"pictures are {frames.dtype} from {frames.min():g} to "
                    f"{frames.max():g}, expected whole numbers from 0 to 255"
                )  # fmt: skip
            frames = frames.astype(np.uint8)
        return np.ascontiguousarray(
            frames.transpose(0, 3, 1, 2) if layout.channels_last else frames
        )

    @property
    def _range_hint(self) -> str:
        """The recorded range, which maps to [-1, 1]."""
        actions = np.asarray(self._arrays["actions"][:])
        low, high = (
            "[" + ", ".join(f"{x:g}" for x in end) + "]" for end in (actions.min(0), actions.max(0))
        )
        return f"; recorded range: --dataset.action_low '{low}' --dataset.action_high '{high}'"
