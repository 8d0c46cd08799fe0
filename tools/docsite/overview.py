"""The picture on the README's first screen: episodes of the gallery, beside learning curves.

    python -m tools.docsite.overview

It reads ``release/results/gallery`` (``tools.gallery``) and the curves of Lift, and writes
``docs/images/overview.webp``, an animation.
"""

from __future__ import annotations

import sys
from pathlib import Path

import imageio.v3 as iio
import numpy as np
from PIL import Image

from common_utils.atomic import atomic_write, make_folder
from common_utils.errors import run_program

ROOT = Path(__file__).resolve().parents[2]
EPISODES = (
    "robosuite_Lift", "robosuite_PickPlaceCan", "robosuite_NutAssemblySquare",
    "metaworld_DrawerOpen", "metaworld_Assembly", "block_pushing_PUSH",
)  # fmt: skip
COLUMNS, TILE, FRAMES = 3, 160, 36
CURVES = "release/results/robosuite/lift_learning.png"


def episode(name: str) -> np.ndarray:
    """A successful episode in FRAMES frames, however long it is: uint8 [FRAMES, TILE, TILE, 3]."""
    video = iio.imread(ROOT / f"release/results/gallery/{name}_success.mp4")
    chosen = np.linspace(0, len(video) - 1, FRAMES).round().astype(int)
    side = min(video.shape[1:3])
    left = (video.shape[2] - side) // 2
    squares = (Image.fromarray(video[i][:side, left : left + side]) for i in chosen)
    return np.stack([np.asarray(square.resize((TILE, TILE))) for square in squares])


def main() -> None:
    """Entry point."""
    tiles = [episode(name) for name in EPISODES]
    rows = [np.concatenate(tiles[i : i + COLUMNS], 2) for i in range(0, len(tiles), COLUMNS)]
    left = np.concatenate(rows, 1)
    curves = Image.open(ROOT / CURVES).convert("RGB")
    height = left.shape[1]
    right = np.asarray(curves.resize((curves.width * height // curves.height, height)))
    frames = [Image.fromarray(np.concatenate([frame, right], 1)) for frame in left]
    out = make_folder(ROOT / "docs" / "images") / "overview.webp"
    with atomic_write(out) as temp:
        frames[0].save(
            temp, "WEBP", save_all=True, append_images=frames[1:], duration=130, loop=0, quality=50
        )


if __name__ == "__main__":
    sys.exit(run_program(main))
