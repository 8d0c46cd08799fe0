"""Reading demonstration files: the HDF5 layouts of robomimic and Meta-World.

    data/demo_{i}/actions            float [T, A]   (any other name of a group does as well)
    data/demo_{i}/rewards            float [T]
    data/demo_{i}/dones              0 or 1 [T] (optional)
    data/demo_{i}/obs/{camera}_image uint8 [T, 3*stack, H, W], upright, channels first; or
                                     [T, H, W, 3*stack], channels last (see bc.pictures)
    data/demo_{i}/obs/prop           float [T, P]   (or robomimic's separate keys)
    data/demo_{i}/obs/state          float [T, S]   (or robomimic's separate keys)
                                     with an attribute "stack" k > 1: k steps, newest first
    data/demo_{i}/infos/{key}        float [T]      what else the environment said after each step
    data/demo_{i}.attrs["ended"]     "terminated" or "truncated"; ["success"] the recorder's verdict
    data.attrs["env_args"] and/or env_cfg.json beside the file: how the environment was built

Every fault is a :class:`DatasetError` that names the file, the demonstration and the key.
A damaged HDF5 file makes h5py raise almost anything, so every access to it is guarded; what may
lead out of the file, or be larger than it looks, goes through ``common_utils.h5_read``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from bc.pictures import PictureLayout, Pictures, layout_of
from common_utils import h5_read
from common_utils.env_args import arm_controller, read_env_args, shown, suite_of
from common_utils.errors import UserError
from common_utils.made_by import RAW_ROBOMIMIC, how_to_make
from common_utils.resources import available_memory, format_bytes
from common_utils.robomimic_keys import ALPHABETICAL, PROP_KEYS, STATE_KEYS
from common_utils.success_rule import TERMINATED, TRUNCATED


class DatasetError(UserError):
    """A demonstration file is missing, damaged, or not what the configuration asks for."""


# What h5py was seen to raise on files with damaged bytes.
H5_FAULTS = (
    OSError, LookupError, RuntimeError, ValueError, TypeError, MemoryError, SystemError,
    ArithmeticError, AttributeError,
)  # fmt: skip
# datasets in other files that stay open, so that a run does not run out of descriptors
MOST_OPEN = 128


def _natural(name: str) -> list[tuple[int, int, str]]:
    parts = re.split(r"(\d+)", name)
    return [(1, int(p), "") if p.isdigit() else (0, 0, p) for p in parts]


def _few(names: Sequence[str], most: int = 4) -> str:
    """The names, or the first of them and how many there are."""
    more = f", ... ({len(names)} in all)" if len(names) > most else ""
    return ", ".join(names[:most]) + more


class DemoFile:
    """An open demonstration file; reads single arrays, checked and converted.

    Attributes: ``names`` (demonstrations: ``demo_*``, then those of other names, each naturally
    sorted), ``notes`` (sentences on what of ``data`` has other names), ``env_args`` (dict, empty
    when the file carries none), ``env_name`` (str, may be empty), ``suite`` ("metaworld",
    "robosuite", "d4rl", any other that env_args names, or "").
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not str(path):
            raise DatasetError("dataset.path is empty: give an HDF5 file of demonstrations")
        if not self.path.is_file():
            raise DatasetError(
                f"demonstration file '{path}' does not exist; to make it: {how_to_make(path)}"
            )
        try:
            self._file = h5_read.open_file(self.path)
        except OSError as err:
            raise DatasetError(
                f"'{path}' cannot be read as HDF5 (damaged, cut off, or still being written?): "
                f"{err}; to make it again: {how_to_make(path)}"
            ) from err
        try:
            with self._guard(None, "data"):
                data = h5_read.find(self._file, "data")
                if not isinstance(data, h5py.Group):
                    raise self.error(None, "data", "no group 'data'; expected the robomimic layout")
                self._data = data
                self.names, self.notes = self._demonstrations()
                self.env_args = self._read_env_args()
        except BaseException:
            self._file.close()
            raise
        self.env_name = str(self.env_args.get("env_name", ""))
        self.suite = suite_of(self.env_args)
        self._groups: dict[str, h5py.Group] = {}
        self._lengths: dict[str, int] = {}
        self._pictures: dict[tuple[str, str], Pictures] = {}
        self._checked: set[tuple[str, str]] = set()
        self._stored: set[int] = set()  # the datasets among them; a file may give one many names
        self._size = h5_read.Size(0, 0)  # of all that was checked
        self._since_room = 0

    def close(self) -> None:
        """Close the file; safe to call twice."""
        self._file.close()

    def __enter__(self) -> DemoFile:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def error(self, name: str | None, key: str, what: str) -> DatasetError:
        """A DatasetError that says where the fault is."""
        where = f"'{self.path}'" + (f", {name}" if name else "") + f", '{key}'"
        return DatasetError(f"{where}: {what}")

    @contextmanager
    def _guard(self, name: str | None, key: str) -> Iterator[None]:
        """Turn what h5py raises on damaged bytes into a DatasetError that says where."""
        try:
            yield
        except h5_read.Refused as err:
            raise self.error(name, key, str(err)) from err
        except H5_FAULTS as err:
            raise self.error(name, key, f"cannot be read (damaged file?): {err}") from err

    def _demonstrations(self) -> tuple[list[str], list[str]]:
        """Names in reading order, and notes on every entry that is not called ``demo*``."""
        found = h5_read.names(self._data)
        named = [n for n in found if n.startswith("demo")]
        others: dict[bool, list[str]] = {True: [], False: []}
        for name in sorted(set(found) - set(named), key=_natural):
            others[self._has_actions(name)].append(name)
        notes = []
        if others[True] and named:
            notes.append(
                f"{len(others[True])} demonstrations are not called demo_*: {_few(others[True])}; "
                f"they are read after the {len(named)} that are"
            )
        if others[False]:
            notes.append(f"no demonstration, since without 'actions': {_few(others[False])}")
        if not named and not others[True]:
            raise self.error(
                None, "data", "no demonstration in it, which is a group 'demo_*' or any other with "
                f"'actions'; it holds {_few(others[False]) or 'nothing'}"
            )  # fmt: skip
        return sorted(named, key=_natural) + others[True], notes

    def _has_actions(self, name: str) -> bool:
        try:
            return h5_read.find(self._data, f"{name}/actions") is not None
        except h5_read.Refused:
            return False

    @property
    def data(self) -> h5py.Group:
        """The group of all demonstrations."""
        return self._data

    @property
    def root(self) -> h5py.File:
        """The file itself, for what this class does not read."""
        return self._file

    def group(self, name: str) -> h5py.Group:
        """One demonstration's group."""
        if name in self._groups:
            return self._groups[name]
        with self._guard(name, "actions"):
            found = h5_read.find(self._data, name)
            if not isinstance(found, h5py.Group):
                raise self.error(None, name, "missing or not a group; expected a demonstration")
            if h5_read.file_number(found) == h5_read.file_number(self._file):
                self._groups[name] = found  # another file would stay open with its group
        return found

    def find(self, name: str | None, key: str) -> h5_read.Item | None:
        """What lies at ``key`` of a demonstration (of the file, without a name), or None."""
        group = self._file if name is None else self.group(name)
        with self._guard(name, key):
            return h5_read.find(group, key)

    def obs_keys(self, name: str) -> list[str]:
        """The names of a demonstration's observations, sorted; none in raw recordings."""
        found = self.find(name, "obs")
        with self._guard(name, "obs"):
            return h5_read.names(found) if isinstance(found, h5py.Group) else []

    def check_all(self, name: str) -> None:
        """Raise DatasetError unless all datasets of a demonstration can be read."""
        with self._guard(name, "datasets"):
            items = list(h5_read.datasets(self.group(name)))
        for key, found in items:
            with self._guard(name, key):
                if isinstance(found, Exception):
                    raise found
                self.dataset(name, key)

    def attribute(self, name: str | None, key: str, attr: str) -> Any:
        """An attribute of what lies at ``key`` ("" the demonstration itself); None without it."""
        item = self.find(name, key)
        with self._guard(name, attr):
            return None if item is None else item.attrs.get(attr)

    def text(self, name: str, attr: str) -> str:
        """A demonstration's attribute that is text; "" without it."""
        value = self.attribute(name, "", attr)
        if isinstance(value, bytes):
            value = value.decode(errors="replace")
        if value is not None and not isinstance(value, str):
            raise self.error(name, attr, f"expected an attribute that is text, got {shown(value)}")
        return value or ""

    def _read_env_args(self) -> dict[str, Any]:
        try:
            return read_env_args(self._data.attrs, self.path.parent / "env_cfg.json")
        except ValueError as err:
            raise DatasetError(f"'{self.path}', {err}") from err

    @property
    def delta_control(self) -> bool:
        """Whether actions are relative and so must lie in [-1, 1] (robosuite: control_delta)."""
        return bool(arm_controller(self.env_args)["control_delta"])

    def dataset(self, name: str, key: str) -> h5py.Dataset:
        """One dataset, whose storage and size are checked, and nothing else."""
        found = self.find(name, key)
        if not isinstance(found, h5py.Dataset):
            have = ", ".join(self.obs_keys(name)) or "no observations"
            raise self.error(name, key, f"missing; the demonstration's 'obs' holds: {have}")
        if (name, key) not in self._checked:
            with self._guard(name, key):
                self._check_size(found)
            self._checked.add((name, key))
        return found

    def array(self, name: str, key: str) -> np.ndarray:
        """One dataset as it is stored, of any kind and shape."""
        dset = self.dataset(name, key)
        self._room(name, key, dset.size * dset.dtype.itemsize)
        return self._read(dset, name, key)

    def _check_size(self, dset: h5py.Dataset) -> None:
        size, known = h5_read.check(dset), hash(dset.id) in self._stored
        stored = self._size.stored + (0 if known else size.stored)
        self._size = h5_read.Size(self._size.unpacked + size.unpacked, stored)
        self._size.check("together with the datasets before it this one")
        self._stored.add(hash(dset.id))

    def _room(self, name: str, key: str, size: int) -> None:
        """Raise DatasetError where ``size`` bytes do not fit into memory, nothing being taken."""
        self._since_room += size
        if self._since_room < h5_read.SMALL_BYTES:  # asking takes time
            return
        self._since_room, free = 0, available_memory()
        if size > free:
            raise self.error(
                name, key, f"takes {format_bytes(size)} of memory, {format_bytes(free)} are free"
            )

    def numbers(self, name: str, key: str, ndim: int, kinds: str = "fiu") -> np.ndarray:
        """Finite numbers with ``ndim`` axes, float64, e.g. of ``states``.

        kinds: numpy's letters of the dtypes that count as numbers.
        """
        dset = self.dataset(name, key)
        if dset.ndim != ndim:
            raise self.error(name, key, f"expected {ndim} axes, got shape {list(dset.shape)}")
        if dset.dtype.kind not in kinds:
            raise self.error(name, key, f"expected numbers, got {dset.dtype}")
        # as stored, as float64, as float32
        self._room(name, key, dset.size * (dset.dtype.itemsize + 8 + 4))
        return self._finite(name, key, self._read(dset, name, key).astype(np.float64))

    def _float(self, name: str, key: str, ndim: int) -> np.ndarray:
        with np.errstate(all="ignore"):  # what overflows float32 is reported as infinity
            array = self.numbers(name, key, ndim).astype(np.float32)
        return self._finite(name, key, array)

    def _finite(self, name: str, key: str, array: np.ndarray) -> np.ndarray:
        if not np.isfinite(array).all():
            row = int(np.argwhere(~np.isfinite(array))[0][0])
            raise self.error(name, key, f"holds NaN or infinity, first at step {row}")
        return array

    def _read(self, dset: h5py.Dataset, name: str, key: str, rows: Any = ()) -> np.ndarray:
        with self._guard(name, key):
            return dset[rows]

    def length(self, name: str) -> int:
        """Number of steps T of one demonstration."""
        if name not in self._lengths:
            shape = self.dataset(name, "actions").shape
            if not shape or 0 in shape:
                raise self.error(name, "actions", "the demonstration has no steps")
            self._lengths[name] = int(shape[0])
        return self._lengths[name]

    def check(self, name: str) -> None:
        """Raise DatasetError where ``dones`` or ``num_samples`` contradict ``actions``."""
        stated = self.attribute(name, "", "num_samples")
        if stated is not None and not isinstance(stated, (int, np.integer)):
            raise self.error(
                name, "num_samples", f"expected a whole number (the attribute), got {shown(stated)}"
            )
        if stated is not None and stated != self.length(name):
            raise self.error(
                name, "num_samples", f"says {stated}, but 'actions' has {self.length(name)} steps"
            )
        if self.find(name, "dones") is None:
            return
        dones = self._same_length(name, "dones", self._float(name, "dones", 1))
        if not np.isin(dones, (0, 1)).all():
            wrong = dones[~np.isin(dones, (0, 1))][0]
            raise self.error(name, "dones", f"holds {wrong:g}, expected 0 and 1 only")

    def verdict(self, name: str) -> tuple[str, bool | None]:
        """How an episode ended ("terminated", "truncated", or "" where the file does not say), and
        whether its recorder counts it as a success (None: it does not say)."""
        ended, success = self.text(name, "ended"), self.attribute(name, "", "success")
        if ended not in ("", TERMINATED, TRUNCATED):
            raise self.error(
                name, "ended", f"is {shown(ended)}, expected {TERMINATED} or {TRUNCATED}"
            )
        if success is not None and (np.ndim(success) or success not in (0, 1)):
            raise self.error(name, "success", f"is {shown(success)}, expected true or false")
        return ended, None if success is None else bool(success)

    def info(self, name: str, key: str) -> np.ndarray | None:
        """float64 [T] of what ``info[key]`` was after each step, None where it is not there."""
        place = f"infos/{key}"
        if self.find(name, place) is None:
            return None
        return self._same_length(name, place, self.numbers(name, place, 1, kinds="fiub"))

    def boundary_rows(self, name: str) -> int:
        """1 if the last row is a terminal observation, whose action was not played, else 0.

        Files made from recordings of tf-agents say so in ``step_type`` (2: last).
        """
        if self.find(name, "step_type") is None:
            return 0
        kinds = self._same_length(name, "step_type", self._float(name, "step_type", 1))
        return int(len(kinds) > 1 and kinds[-1] == 2)

    def actions(
        self, name: str, limits: tuple[Sequence[float], Sequence[float]] | None = None
    ) -> np.ndarray:
        """float32 [T, A]; within [-1, 1] when the controller is relative.

        ``limits``: the stored actions' range (low, high), one number or one per dimension,
        which becomes [-1, 1].
        """
        actions = self._float(name, "actions", 2)
        if limits is not None:
            low, high = (np.asarray(x, np.float64) for x in limits)
            if low.size not in (1, actions.shape[1]):
                raise self.error(
                    name, "actions", f"have {actions.shape[1]} dimensions, dataset.action_low "
                    f"{low.size}"
                )  # fmt: skip
            actions = (2 * (actions - low) / (high - low) - 1).astype(np.float32)
        if (limits is not None or self.delta_control) and actions.size:
            worst = float(np.abs(actions).max())
            if worst > 1 + 1e-5:  # the margin is for float rounding only
                step = int(np.argwhere(np.abs(actions) > 1 + 1e-5)[0][0])
                raise self.error(
                    name, "actions", f"step {step}: |action| up to {worst:.4g}, must be in [-1, 1]"
                )
            actions = actions.clip(-1, 1)
        return actions

    def rewards(self, name: str) -> np.ndarray:
        """float32 [T]."""
        return self._same_length(name, "rewards", self._float(name, "rewards", 1))

    def _same_length(self, name: str, key: str, array: np.ndarray) -> np.ndarray:
        if len(array) != self.length(name):
            raise self.error(
                name, key, f"has {len(array)} steps, but 'actions' has {self.length(name)}"
            )
        return array

    def _vector_keys(self, name: str, kind: str) -> Sequence[str]:
        if self.find(name, f"obs/{kind}") is not None:
            return (kind,)
        if kind == "prop":
            return PROP_KEYS
        if self.env_name.startswith(ALPHABETICAL):
            return [k for k in self.obs_keys(name) if not k.endswith("_image")]
        return STATE_KEYS.get(self.env_name, ())

    def has_prop(self, name: str) -> bool:
        """Whether proprioception is stored."""
        keys = self._vector_keys(name, "prop")
        return all(self.find(name, f"obs/{k}") is not None for k in keys)

    def vector(self, name: str, kind: str) -> np.ndarray:
        """``kind`` "prop" or "state": float32 [T, D], concatenated in the specified key order."""
        keys = self._vector_keys(name, kind)
        if self.find(name, "obs") is None:
            raise self.error(
                name, "obs", f"missing: a raw recording without observations; {RAW_ROBOMIMIC}"
            )
        if not keys:
            raise self.error(
                name, f"obs/{kind}", f"missing, and the environment '{self.env_name}' (env_args or "
                f"env_cfg.json) is none of {sorted(STATE_KEYS)}, whose keys are known"
            )  # fmt: skip
        parts = [
            self._same_length(name, f"obs/{k}", self._float(name, f"obs/{k}", 2)) for k in keys
        ]
        parts = [
            self._newest_columns(name, f"obs/{k}", p) for k, p in zip(keys, parts, strict=True)
        ]
        return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)

    def _newest_columns(self, name: str, key: str, array: np.ndarray) -> np.ndarray:
        """The newest frame of a vector that was saved stacked (attribute "stack"; newest first)."""
        stack = self._stack(name, key) or 1
        if array.shape[1] % stack:
            raise self.error(
                name, key, f"attribute 'stack' is {stack}, expected a divisor of {array.shape[1]}"
            )
        return array[:, : array.shape[1] // stack]

    def _stack(self, name: str, key: str) -> int | None:
        """The attribute "stack" of a dataset: how many steps each of its rows holds."""
        stack = self.attribute(name, key, "stack")
        if stack is None:
            return None
        if not isinstance(stack, (int, np.integer)) or stack < 1:
            raise self.error(
                name, key, f"attribute 'stack' is {shown(stack)}, expected a whole number of at "
                "least 1"
            )  # fmt: skip
        return int(stack)

    def image_shape(self, name: str, camera: str) -> tuple[int, int, int]:
        """(3, H, W) of one unstacked frame."""
        layout = self.layout(name, camera)
        return (3, layout.height, layout.width)

    def layout(self, name: str, camera: str) -> PictureLayout:
        """How a camera's pictures are stored; DatasetError where that cannot be stated."""
        return self._pictures_of(name, camera).layout

    def images(self, name: str, camera: str, rows: np.ndarray | None = None) -> np.ndarray:
        """uint8 [N, 3, H, W], the newest frame of each step; rows ascending, unique."""
        pictures, key = self._pictures_of(name, camera), f"obs/{camera}_image"
        count = len(pictures) if rows is None else len(rows)
        self._room(name, key, count * pictures.frame_bytes)
        with self._guard(name, key):
            return pictures.read(rows)

    def _pictures_of(self, name: str, camera: str) -> Pictures:
        if (name, camera) not in self._pictures:
            found = self._checked_pictures(name, camera)
            with self._guard(name, camera):
                elsewhere = [k for k, v in self._pictures.items() if not v.in_file]
            for place in elsewhere[: len(elsewhere) + 1 - MOST_OPEN]:
                del self._pictures[place]  # and so the file that it was in is closed
            self._pictures[name, camera] = found
        return self._pictures[name, camera]

    def _checked_pictures(self, name: str, camera: str) -> Pictures:
        key = f"obs/{camera}_image"
        dset = self.dataset(name, key)
        if dset.dtype != np.uint8:
            raise self.error(name, key, f"expected uint8 images, got {dset.dtype}")
        shape, size = list(dset.shape), self._declared_size(camera)
        layout = None
        if dset.ndim == 4 and 0 not in shape:
            layout = layout_of(shape, size, self._stack(name, key))
        if layout is None:
            declared = f"{size[0]} x {size[1]}" if size else "no size"
            raise self.error(
                name, key, f"expected images [T, 3*stack, H, W] (channels first) or [T, H, W, "
                f"3*stack] (channels last), got {shape}, which is not plainly one of them; "
                f"env_args declare {declared} (env_kwargs.camera_heights, camera_widths)"
            )  # fmt: skip
        if shape[0] != self.length(name):
            raise self.error(
                name, key, f"has {shape[0]} steps, but 'actions' has {self.length(name)}"
            )
        with self._guard(name, key):
            return Pictures(dset, layout, self._file)

    def _declared_size(self, camera: str) -> tuple[int, int] | None:
        """(height, width) of a camera's pictures as the file declares them."""
        kwargs = self.env_args.get("env_kwargs") or {}
        if side := kwargs.get("rl_image_size"):
            return side, side
        height, width = kwargs.get("camera_heights"), kwargs.get("camera_widths")
        if isinstance(height, list) and isinstance(width, list):  # one for each camera
            cameras = list(kwargs.get("camera_names", []))
            sizes = dict(zip(cameras, zip(height, width, strict=False), strict=False))
            return sizes.get(camera)
        if isinstance(height, int) and isinstance(width, int):
            return height, width
        return None
