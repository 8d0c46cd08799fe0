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

This module knows where pictures and the environment lie; ``bc.demo_store`` opens and reads the
file, guarded against damage; ``bc.demos`` knows what the arrays mean.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from bc.dataset_config import KeyOptions
from bc.demo_store import DemoStore
from bc.demos import DatasetError
from bc.pictures import PictureLayout, Pictures, declared_size, layout_of
from common_utils.env_args import read_env_args

# at most this many datasets in other files stay open, to limit a run's file descriptors
MOST_OPEN = 128


class DemoFile(DemoStore):
    """An open demonstration file; delivers its arrays by meaning, checked and converted."""

    def __init__(self, path: str | Path, keys: KeyOptions | None = None) -> None:
        super().__init__(path)
        self.keys = keys or KeyOptions()
        try:
            with self._guard(None, "data"):
                self.env_args = self._read_env_args()
        except BaseException:
            self.close()
            raise
        self._pictures: dict[tuple[str, str], Pictures] = {}

    def _read_env_args(self) -> dict[str, Any]:
        try:
            return read_env_args(self._data.attrs, self.path.parent / "env_cfg.json")
        except ValueError as err:
            raise DatasetError(f"'{self.path}', {err}") from err

    def facts(self) -> dict[str, Any]:
        """The attributes of ``data``."""
        with self._guard(None, "data"):
            attrs = dict(self._data.attrs)
        return {f"attribute {k}": v for k, v in attrs.items() if k not in ("env_args", "env_info")}

    def layout(self, name: str, camera: str) -> PictureLayout:
        """How a camera's pictures are stored; DatasetError if that cannot be decided."""
        return self._pictures_of(name, camera).layout

    def images(self, name: str, camera: str, rows: np.ndarray | None = None) -> np.ndarray:
        """uint8 [N, 3, H, W], the newest frame of each step; rows ascending, unique."""
        pictures, key = self._pictures_of(name, camera), self.image_key(camera)
        count = len(pictures) if rows is None else len(rows)
        self.room(name, key, count * pictures.frame_bytes)
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
        key = self.image_key(camera)
        dset = self.dataset(name, key)
        if dset.dtype != np.uint8:
            raise self.error(name, key, f"expected uint8 images, got {dset.dtype}")
        shape, size = list(dset.shape), declared_size(self.env_args, camera)
        layout = None
        if dset.ndim == 4 and 0 not in shape:
            layout = layout_of(shape, size, self.stack(name, key))
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
