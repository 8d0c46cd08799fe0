"""MP4 files of episodes, with time and success written on the frames."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from common_utils.atomic import atomic_write

_GREEN, _WHITE, _BLACK = (40, 200, 80), (255, 255, 255), (0, 0, 0)


def annotate(frame: np.ndarray, text: str, success: bool = False) -> np.ndarray:
    """A copy of ``frame`` (uint8 [H, W, 3]) with a caption; a green border once successful."""
    from PIL import Image, ImageDraw

    picture = Image.fromarray(np.ascontiguousarray(frame))
    draw = ImageDraw.Draw(picture)
    width, height = picture.size
    if success:
        border = max(2, min(width, height) // 48)
        draw.rectangle((0, 0, width - 1, height - 1), outline=_GREEN, width=border)
        text += "  success"
    box = draw.textbbox((6, 4), text)
    draw.rectangle((box[0] - 2, box[1] - 1, box[2] + 2, box[3] + 1), fill=_BLACK)
    draw.text((6, 4), text, fill=_GREEN if success else _WHITE)
    return np.asarray(picture)


def write_video(path: str | Path, frames: Sequence[np.ndarray], fps: int = 20) -> Path:
    """Write an H.264 MP4 that browsers play; ``frames`` uint8 [H, W, 3], all the same size.

    Odd heights or widths lose their last row or column (H.264 needs even ones). Atomic.
    Raises ValueError if there are no frames, or for frames of another kind.
    """
    import imageio.v2 as imageio

    path = Path(path)
    if not frames:
        raise ValueError(f"{path}: no frames to write")
    for number, frame in enumerate(frames):
        if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape != frames[0].shape:
            raise ValueError(
                f"{path}: frame {number} is {frame.dtype}{list(frame.shape)}, expected "
                f"uint8{list(frames[0].shape)}"
            )
    height, width = (n - n % 2 for n in frames[0].shape[:2])
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as temp:
        # macro_block_size 1: keep the size instead of scaling up to multiples of 16
        options: dict[str, Any] = {"fps": fps, "codec": "libx264", "macro_block_size": 1}
        writer: Any  # imageio's own annotation lacks append_data
        with imageio.get_writer(temp, format="FFMPEG", **options) as writer:
            for frame in frames:
                writer.append_data(np.ascontiguousarray(frame[:height, :width]))
    return path
