"""Reading demonstration files: robomimic and Meta-World HDF5 layouts (specification 12).

    data/demo_{i}/actions            float [T, A]
    data/demo_{i}/rewards            float [T]
    data/demo_{i}/obs/{camera}_image uint8 [T, 3*stack, H, W], upright, channels first
    data/demo_{i}/obs/prop           float [T, P]   (or robomimic's separate keys)
    data/demo_{i}/obs/state          float [T, S]   (or robomimic's separate keys)
                                     with an attribute "stack" k > 1: k steps, newest first
    data.attrs["env_args"] and/or env_cfg.json beside the file: how the environment was built

Every fault is a :class:`DatasetError` that names the file, the demonstration and the key.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from common_utils.robomimic_keys import PROP_KEYS, STATE_KEYS


class DatasetError(ValueError):
    """A demonstration file is missing, damaged, or not what the configuration asks for."""


RAW_ROBOMIMIC = (
    "converting robomimic's raw recordings needs the robosuite tools, which are not part of this "
    "version; expected is a converted file with data/demo_N/actions, rewards and "
    "obs/{prop or robot0_eef_pos..., object, CAMERA_image (uint8, channels first)}"
)


def how_to_make(path: str | Path) -> str:
    """The command that creates a missing demonstration file, as far as its path tells."""
    path = Path(path)
    text = path.as_posix()
    if "metaworld" in text:
        task = re.sub(r"_frame_stack.*", "", path.parent.name) or "Assembly"
        return (
            "python mw_main/generate_metaworld_dataset.py "
            f"--env_cfg.env_name {task} --num_episodes 3 --env_cfg.frame_stack 1 "
            f"--env_cfg.end_on_success True --output_path {path.parent.as_posix()}"
        )
    if "robomimic" in text:
        return RAW_ROBOMIMIC
    return (
        "python mw_main/generate_metaworld_dataset.py --env_cfg.env_name TASK --output_path "
        f"{path.parent.as_posix() if path.name else 'FOLDER'} (writes dataset.hdf5 there)"
    )


def _natural(name: str) -> list[tuple[int, int, str]]:
    parts = re.split(r"(\d+)", name)
    return [(1, int(p), "") if p.isdigit() else (0, 0, p) for p in parts]


class DemoFile:
    """An open demonstration file; reads single arrays, checked and converted.

    Attributes: ``names`` (naturally sorted demo names), ``env_args`` (dict, empty when the file
    carries none), ``env_name`` (str, may be empty), ``suite`` ("metaworld", "robosuite" or "").
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
            self._file = h5py.File(self.path, "r")
        except OSError as err:
            raise DatasetError(
                f"'{path}' cannot be read as HDF5 (damaged or cut off?): {err}; "
                f"to make it again: {how_to_make(path)}"
            ) from err
        try:
            data = self._file.get("data")
            if not isinstance(data, h5py.Group):
                raise self.error(None, "data", "no group 'data'; expected the robomimic layout")
            self._data = data
            self.names = sorted((n for n in data if n.startswith("demo")), key=_natural)
            if not self.names:
                raise self.error(None, "data", "no demonstration 'demo_*' in it")
            self.env_args = self._read_env_args()
        except BaseException:
            self._file.close()
            raise
        self.env_name = str(self.env_args.get("env_name", ""))
        self.suite = self._suite()
        self._newest: dict[tuple[str, str], slice] = {}

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

    def _read_env_args(self) -> dict[str, Any]:
        # data.attrs wins: it travels with the file, env_cfg.json may have been left behind.
        raw = self._data.attrs.get("env_args")
        where = "data.attrs['env_args']"
        if raw is None:
            side = self.path.parent / "env_cfg.json"
            if not side.is_file():
                return {}
            raw, where = side.read_text(), str(side)
        try:
            args = json.loads(raw)
        except (TypeError, ValueError) as err:
            raise self.error(None, where, f"not valid JSON: {err}") from err
        if not isinstance(args, dict):
            raise self.error(None, where, f"expected a JSON object, got {type(args).__name__}")
        return args

    def _suite(self) -> str:
        kwargs = self.env_args.get("env_kwargs") or {}
        if "suite" in self.env_args:
            return str(self.env_args["suite"])
        if "action_repeat" in kwargs:
            return "metaworld"
        if "controller_configs" in kwargs:
            return "robosuite"
        return ""

    @property
    def delta_control(self) -> bool:
        """Whether actions are relative and so must lie in [-1, 1] (robosuite: control_delta)."""
        kwargs = self.env_args.get("env_kwargs") or {}
        controllers = kwargs.get("controller_configs") or {}
        if isinstance(controllers, list):
            controllers = controllers[0] if controllers else {}
        return bool(controllers.get("control_delta", True))

    def _dataset(self, name: str, key: str) -> h5py.Dataset:
        found = self._data[name].get(key)
        if not isinstance(found, h5py.Dataset):
            have = ", ".join(sorted(self._data[name].get("obs", {}))) or "no observations"
            raise self.error(name, key, f"missing; the demonstration's 'obs' holds: {have}")
        return found

    def _float(self, name: str, key: str, ndim: int) -> np.ndarray:
        dset = self._dataset(name, key)
        if dset.ndim != ndim:
            raise self.error(name, key, f"expected {ndim} axes, got shape {list(dset.shape)}")
        if dset.dtype.kind not in "fiu":
            raise self.error(name, key, f"expected numbers, got {dset.dtype}")
        array = self._read(dset, name, key).astype(np.float32)
        if not np.isfinite(array).all():
            row = int(np.argwhere(~np.isfinite(array))[0][0])
            raise self.error(name, key, f"holds NaN or infinity, first at step {row}")
        return array

    def _read(self, dset: h5py.Dataset, name: str, key: str, rows: Any = ()) -> np.ndarray:
        try:
            return dset[rows]
        except OSError as err:
            raise self.error(name, key, f"cannot be read (damaged file?): {err}") from err

    def length(self, name: str) -> int:
        """Number of steps T of one demonstration."""
        steps = int(self._dataset(name, "actions").shape[0])
        if steps == 0:
            raise self.error(name, "actions", "the demonstration has no steps")
        return steps

    def actions(self, name: str) -> np.ndarray:
        """float32 [T, A]; within [-1, 1] when the controller is relative."""
        actions = self._float(name, "actions", 2)
        if self.delta_control and actions.size:
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
        if f"obs/{kind}" in self._data[name]:
            return (kind,)
        return PROP_KEYS if kind == "prop" else STATE_KEYS.get(self.env_name, ())

    def has_prop(self, name: str) -> bool:
        """Whether proprioception is stored."""
        return all(f"obs/{k}" in self._data[name] for k in self._vector_keys(name, "prop"))

    def vector(self, name: str, kind: str) -> np.ndarray:
        """``kind`` "prop" or "state": float32 [T, D], concatenated in the specified key order."""
        keys = self._vector_keys(name, kind)
        if "obs" not in self._data[name]:
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
        stack = self._dataset(name, key).attrs.get("stack", 1)
        if not isinstance(stack, (int, np.integer)) or stack < 1 or array.shape[1] % stack:
            raise self.error(
                name, key, f"attribute 'stack' is {stack}, expected a divisor of {array.shape[1]}"
            )
        return array[:, : array.shape[1] // int(stack)]

    def image_shape(self, name: str, camera: str) -> tuple[int, int, int]:
        """(3, H, W) of one unstacked frame."""
        dset = self._images(name, camera)
        return (3, int(dset.shape[2]), int(dset.shape[3]))

    def _images(self, name: str, camera: str) -> h5py.Dataset:
        key = f"obs/{camera}_image"
        dset = self._dataset(name, key)
        if dset.dtype != np.uint8:
            raise self.error(name, key, f"expected uint8 images, got {dset.dtype}")
        if dset.ndim != 4 or dset.shape[1] % 3 or dset.shape[1] == 0:
            raise self.error(
                name, key, f"expected [T, 3*stack, H, W] (channels first), got {list(dset.shape)}"
            )
        if dset.shape[0] != self.length(name):
            raise self.error(
                name, key, f"has {dset.shape[0]} steps, but 'actions' has {self.length(name)}"
            )
        return dset

    def images(self, name: str, camera: str, rows: np.ndarray | None = None) -> np.ndarray:
        """uint8 [N, 3, H, W], the newest frame of each step; rows ascending, unique."""
        dset, key = self._images(name, camera), f"obs/{camera}_image"
        newest = self._newest_channels(name, camera)
        index = (slice(None) if rows is None else rows, newest)
        return self._read(dset, name, key, index)

    def _newest_channels(self, name: str, camera: str) -> slice:
        """Where the newest frame is in a stack; the original stacks oldest first, we newest."""
        if (name, camera) not in self._newest:
            self._newest[name, camera] = self._find_newest(name, camera)
        return self._newest[name, camera]

    def _find_newest(self, name: str, camera: str) -> slice:
        dset, key = self._images(name, camera), f"obs/{camera}_image"
        if dset.shape[1] == 3:
            return slice(0, 3)
        before = self._read(dset, name, key, 0)
        for step in range(1, dset.shape[0]):
            now = self._read(dset, name, key, step)
            newest_first = bool((now[3:6] == before[:3]).all())
            oldest_first = bool((now[-6:-3] == before[-3:]).all())
            if not newest_first and not oldest_first:
                raise self.error(
                    name, key, f"step {step}: stacked images fit neither newest nor oldest first"
                )
            if newest_first != oldest_first:  # both: padding or a standstill, tells nothing
                return slice(0, 3) if newest_first else slice(dset.shape[1] - 3, dset.shape[1])
            before = now
        return slice(0, 3)
