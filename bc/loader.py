"""Reading demonstration files: the HDF5 layouts of robomimic and Meta-World.

    data/demo_{i}/actions            float [T, A]   (groups may have any other name)
    data/demo_{i}/rewards            float [T]
    data/demo_{i}/dones              0 or 1 [T] (optional)
    data/demo_{i}/obs/{camera}_image uint8 [T, 3*stack, H, W], upright, channels first; or
                                     [T, H, W, 3*stack], channels last (see bc.pictures)
    data/demo_{i}/obs/prop           float [T, P]   (or robomimic's separate keys)
    data/demo_{i}/obs/state          float [T, S]   (or robomimic's separate keys)
                                     with an attribute "stack" k > 1: k steps, newest first
    data/demo_{i}/infos/{key}        float [T]      the environment's further data after each step
    data/demo_{i}.attrs["ended"]     "terminated" or "truncated"; ["success"] the recorder's verdict
    data.attrs["env_args"] and/or env_cfg.json next to the file: how the environment was built

This module knows the meaning of these arrays; ``bc.demo_store`` opens and reads the file, guarded
against damage. Every fault is a :class:`DatasetError` that names the file, the demonstration and
the key.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bc.demo_store import DatasetError, DemoStore
from bc.pictures import PictureLayout, Pictures, declared_size, layout_of
from common_utils.env_args import arm_controller, read_env_args, shown, suite_of
from common_utils.made_by import RAW_ROBOMIMIC
from common_utils.robomimic_keys import ALPHABETICAL, PROP_KEYS, STATE_KEYS
from common_utils.success_rule import TERMINATED, TRUNCATED

# at most this many datasets in other files stay open, to limit a run's file descriptors
MOST_OPEN = 128


class DemoFile(DemoStore):
    """An open demonstration file; delivers its arrays by meaning, checked and converted.

    Attributes in addition to the store's: ``env_args`` (dict, empty if the file has none),
    ``env_name`` (str, may be empty), ``suite`` ("metaworld", "robosuite", "d4rl", any other that
    env_args names, or "").
    """

    def __init__(self, path: str | Path) -> None:
        super().__init__(path)
        try:
            with self._guard(None, "data"):
                self.env_args = self._read_env_args()
        except BaseException:
            self.close()
            raise
        self.env_name = str(self.env_args.get("env_name", ""))
        self.suite = suite_of(self.env_args)
        self._lengths: dict[str, int] = {}
        self._pictures: dict[tuple[str, str], Pictures] = {}

    def _read_env_args(self) -> dict[str, Any]:
        try:
            return read_env_args(self._data.attrs, self.path.parent / "env_cfg.json")
        except ValueError as err:
            raise DatasetError(f"'{self.path}', {err}") from err

    @property
    def delta_control(self) -> bool:
        """Whether actions are relative and so must lie in [-1, 1] (robosuite: control_delta)."""
        return bool(arm_controller(self.env_args)["control_delta"])

    def length(self, name: str) -> int:
        """Number of steps T of one demonstration."""
        if name not in self._lengths:
            shape = self.dataset(name, "actions").shape
            if not shape or 0 in shape:
                raise self.error(
                    name, "actions", f"has shape {list(shape)}, so the demonstration has no steps; "
                    "expected [T, A]"
                )  # fmt: skip
            self._lengths[name] = int(shape[0])
        return self._lengths[name]

    def check(self, name: str) -> None:
        """Raise DatasetError if ``dones`` or ``num_samples`` contradict ``actions``."""
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
        """How an episode ended ("terminated", "truncated", or "" if not recorded), and whether its
        recorder counts it as a success (None: not recorded)."""
        ended, success = self.text(name, "ended"), self.attribute(name, "", "success")
        if ended not in ("", TERMINATED, TRUNCATED):
            raise self.error(
                name, "ended", f"is {shown(ended)}, expected {TERMINATED} or {TRUNCATED}"
            )
        if success is not None and not _is_flag(success):
            raise self.error(name, "success", f"is {shown(success)}, expected true or false")
        return ended, None if success is None else bool(success)

    def info(self, name: str, key: str) -> np.ndarray | None:
        """float64 [T]: ``info[key]`` after each step, or None if it was not recorded."""
        place = f"infos/{key}"
        if self.find(name, place) is None:
            return None
        return self._same_length(name, place, self.numbers(name, place, 1, kinds="fiub"))

    def boundary_rows(self, name: str) -> int:
        """1 if the last row is a terminal observation, whose action was not played, else 0.

        Files made from tf-agents recordings mark it in ``step_type`` (2: last).
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
                f"env_cfg.json) is not one of {sorted(STATE_KEYS)}, whose keys are known"
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
        """How a camera's pictures are stored; DatasetError if that cannot be decided."""
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
                del self._pictures[place]  # this also closes the file that it was in
            self._pictures[name, camera] = found
        return self._pictures[name, camera]

    def _checked_pictures(self, name: str, camera: str) -> Pictures:
        key = f"obs/{camera}_image"
        dset = self.dataset(name, key)
        if dset.dtype != np.uint8:
            raise self.error(name, key, f"expected uint8 images, got {dset.dtype}")
        shape, size = list(dset.shape), declared_size(self.env_args, camera)
        layout = None
        if dset.ndim == 4 and 0 not in shape:
            layout = layout_of(shape, size, self._stack(name, key))
        if layout is None:
            declared = f"{size[0]} x {size[1]}" if size else "no size"
            raise self.error(
                name, key, f"expected images [T, 3*stack, H, W] (channels first) or [T, H, W, "
                f"3*stack] (channels last), got {shape}, which is not clearly one of them; "
                f"env_args declare {declared} (env_kwargs.camera_heights, camera_widths)"
            )  # fmt: skip
        if shape[0] != self.length(name):
            raise self.error(
                name, key, f"has {shape[0]} steps, but 'actions' has {self.length(name)}"
            )
        with self._guard(name, key):
            return Pictures(dset, layout, self._file)


def _is_flag(value: object) -> bool:
    """Whether an attribute is true or false, or 1 or 0 in any numeric type."""
    number = np.asarray(value)
    return number.ndim == 0 and number.dtype.kind in "biuf" and number in (0, 1)
