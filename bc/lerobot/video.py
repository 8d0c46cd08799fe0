"""Single frames of videos, decoded when they are asked for (with PyAV)."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bc.lerobot.parquet import require

MOST_OPEN = 16  # videos, to limit a run's file descriptors
# a frame at most so many steps ahead is reached by decoding on, one further away by seeking
NEAR = 10


class VideoFault(ValueError):
    """A video that does not hold what the dataset says; the message names neither file nor key."""


class Video:
    """One open file; frames are found by their time in seconds."""

    def __init__(self, path: Path, size: tuple[int, int], fps: float) -> None:
        av = require("av")
        # what FFmpeg raises on damaged bytes; PyAV itself has been seen to raise the others
        self._faults = (av.FFmpegError, OSError, ValueError, EOFError, IndexError)
        self._size, self._fps = size, fps
        try:
            self._container = av.open(str(path), mode="r", options={"protocol_whitelist": "file"})
        except self._faults as error:
            raise VideoFault(f"cannot be read as video (damaged, cut off?): {error}") from error
        try:
            self._stream = self._check(self._container.streams.video)
        except BaseException:
            self._container.close()
            raise
        self._decoder: Any = None
        self._frame: Any = None

    def _check(self, streams: Any) -> Any:
        if len(streams) != 1 or streams[0].codec_context is None:
            raise VideoFault(f"has {len(streams)} video streams, expected one that can be decoded")
        found = (streams[0].height, streams[0].width)
        if found != self._size:
            raise VideoFault(
                f"has frames of {found[0]} x {found[1]} pixels, expected {self._size[0]} x "
                f"{self._size[1]} (meta/info.json)"
            )
        return streams[0]

    def close(self) -> None:
        """Close the file."""
        self._container.close()

    def read(self, times: Sequence[float], out: np.ndarray) -> None:
        """Fill ``out`` (uint8 [N, 3, H, W]) with the frames at ``times``, in ascending order."""
        for place, time in zip(out, times, strict=True):
            try:
                frame = self._at(time)
                picture = frame.to_ndarray(format="rgb24")
            except StopIteration:
                raise VideoFault(
                    f"ends before {time:.3f} s, where a step of an episode lies (cut off?)"
                ) from None
            except self._faults as error:
                if isinstance(error, VideoFault):
                    raise
                raise VideoFault(f"cannot be decoded at {time:.3f} s: {error}") from error
            if picture.shape[:2] != self._size:
                raise VideoFault(f"has a frame of {list(picture.shape)} at {time:.3f} s")
            place[:] = picture.transpose(2, 0, 1)

    def _at(self, time: float) -> Any:
        """The frame that is shown at ``time``."""
        near = 0.5 / self._fps
        now = self._frame.time if self._frame is not None else None
        if now is None or not -near <= time - now <= NEAR / self._fps:
            base = float(self._stream.time_base)
            self._container.seek(max(0, int((time - near) / base)), stream=self._stream)
            self._decoder, self._frame = self._container.decode(self._stream), None
        while self._frame is None or self._frame.time < time - near:
            frame = next(self._decoder)
            if frame.time is None or frame.is_corrupt:
                raise VideoFault(f"has a damaged frame before {time:.3f} s")
            self._frame = frame
        if self._frame.time > time + near:
            raise VideoFault(
                f"has no frame at {time:.3f} s; the next is at {self._frame.time:.3f} s"
            )
        return self._frame


class Videos:
    """The videos of a dataset; some of them are kept open."""

    def __init__(self) -> None:
        self._open: OrderedDict[Path, Video] = OrderedDict()

    def get(self, path: Path, size: tuple[int, int], fps: float) -> Video:
        """The video at ``path``; VideoFault if it cannot be opened or has another size."""
        if path not in self._open:
            video = Video(path, size, fps)
            while len(self._open) >= MOST_OPEN:
                self._open.popitem(last=False)[1].close()
            self._open[path] = video
        self._open.move_to_end(path)
        return self._open[path]

    def close(self) -> None:
        """Close all; safe to call twice."""
        while self._open:
            self._open.popitem()[1].close()
