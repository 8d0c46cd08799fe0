"""The pictures of one camera in one demonstration: their layout in the file, and reading them.

    [T, 3*stack, H, W]   channels first, as our tools write them
    [T, H, W, 3*stack]   channels last, as in robomimic's raw files; read transposed

From stacked pictures the newest frame is used; some programs store it first, some last.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import h5py
import numpy as np

from common_utils import h5_read


@dataclass(frozen=True)
class PictureLayout:
    """Which axis holds the channels, and what the others are."""

    channels_last: bool
    stack: int
    height: int
    width: int

    def __str__(self) -> str:
        channels = f"3*{self.stack}" if self.stack > 1 else "3"
        if self.channels_last:
            return f"channels last [T, {self.height}, {self.width}, {channels}]"
        return f"channels first [T, {channels}, {self.height}, {self.width}]"

    @property
    def likelihood(self) -> int:
        """Most pictures are square and have fewer channels than pixels in a row."""
        opposite = self.height if self.channels_last else self.width
        return (self.height == self.width) + (3 * self.stack < opposite)


def layout_of(
    shape: Sequence[int], size: tuple[int, int] | None = None, stack: int | None = None
) -> PictureLayout | None:
    """The layout of pictures stored as ``shape`` [T, a, b, c]; None if it cannot be decided.

    ``size`` (height, width) and ``stack`` are those that the file declares, if any: they decide
    if they fit only one layout. Otherwise the likelier layout is chosen.
    """
    _, a, b, c = shape
    options = [PictureLayout(False, a // 3, b, c)] if a % 3 == 0 else []
    options += [PictureLayout(True, c // 3, a, b)] if c % 3 == 0 else []
    for declared in (
        [x for x in options if x.stack == stack],
        [x for x in options if (x.height, x.width) == size],
    ):
        if len(declared) == 1:
            return declared[0]
    best = max((x.likelihood for x in options), default=0)
    likely = [x for x in options if x.likelihood == best]
    if len(likely) == 1 and (best > 0 or likely[0].stack == 1):
        return likely[0]
    return None


def declared_size(env_args: Mapping[str, Any], camera: str) -> tuple[int, int] | None:
    """(height, width) of a camera's pictures as env_args declare them."""
    kwargs = env_args.get("env_kwargs") or {}
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


class Pictures:
    """Reads ``dset``, stored as ``layout``, in ``file`` or in one that it links to.

    Raises h5py's errors, and :class:`h5_read.Refused` for stacks in no known order.
    """

    def __init__(self, dset: h5py.Dataset, layout: PictureLayout, file: h5py.File) -> None:
        self.layout = layout
        self._dset, self._file = dset, file
        self._shape = tuple(int(n) for n in dset.shape)  # h5py asks the file each time
        self._line = self._shape[2] * self._shape[3]  # bytes of one place on a step's first axis
        self._offset = h5_read.raw_offset(dset, file)
        # true if the data are in the opened file itself, not in a linked one
        self.in_file = h5_read.file_number(dset) == h5_read.file_number(file)

    def __len__(self) -> int:
        return self._shape[0]

    @property
    def frame_bytes(self) -> int:
        """Bytes that reading one frame takes."""
        pixels = self.layout.height * self.layout.width
        # channels last: the stored frame and its transposed copy
        return pixels * 3 * (1 + self.layout.stack if self.layout.channels_last else 1)

    def read(self, rows: np.ndarray | None = None) -> np.ndarray:
        """uint8 [N, 3, H, W], the newest frame of each step (of all); rows ascending, unique."""
        if rows is None:
            last = self.layout.channels_last
            part = self._dset[(..., self._newest) if last else (slice(None), self._newest)]
            return np.ascontiguousarray(self._channels_first(part))
        out = np.empty((len(rows), 3, self.layout.height, self.layout.width), np.uint8)
        handle = h5_read.descriptor(self._file)
        for frame, row in zip(out, rows.tolist(), strict=True):
            if self.layout.channels_last:
                frame[:] = self._stored(handle, row)[..., self._newest].transpose(2, 0, 1)
            else:
                self._fetch(handle, row, self._newest, frame)
        return out

    def _channels_first(self, part: np.ndarray) -> np.ndarray:
        return np.moveaxis(part, -1, -3) if self.layout.channels_last else part

    def _stored(self, handle: int, row: int) -> np.ndarray:
        """One whole step as stored."""
        step = np.empty(self._shape[1:], np.uint8)
        self._fetch(handle, row, slice(0, step.shape[0]), step)
        return step

    def _fetch(self, handle: int, row: int, part: slice, into: np.ndarray) -> None:
        """``part`` of a step's first axis, read from its place in the file if that is known:
        h5py's selection is slower, up to a hundred times for several rows in chunked data."""
        if self._offset is None:
            self._dset.read_direct(into, (row, part))
            return
        start = self._offset + (row * self._shape[1] + part.start) * self._line
        if os.preadv(handle, [into.reshape(-1).data], start) != into.nbytes:
            raise OSError(f"step {row} is beyond the end of the file")

    @cached_property
    def _newest(self) -> slice:
        """The newest frame's place in a stack; the original stacks oldest first, we newest."""
        if self.layout.stack == 1:
            return slice(0, 3)
        last = slice(3 * self.layout.stack - 3, 3 * self.layout.stack)
        handle = h5_read.descriptor(self._file)
        before = self._channels_first(self._stored(handle, 0))
        for step in range(1, len(self)):
            now = self._channels_first(self._stored(handle, step))
            newest_first = bool((now[3:6] == before[:3]).all())
            oldest_first = bool((now[-6:-3] == before[-3:]).all())
            if not newest_first and not oldest_first:
                raise h5_read.Refused(
                    f"step {step}: stacked images fit neither newest nor oldest first; they are "
                    f"read as {self.layout}"
                )
            if newest_first != oldest_first:  # if both, padding or a standstill decides nothing
                return slice(0, 3) if newest_first else last
            before = now
        return slice(0, 3)
