"""The camera above the table, rendered by pybullet's software renderer (TinyRenderer).

The published image is 240 x 320; its vertical field of view follows from the height and the
focal length. Smaller images show the same view. ``faithful`` renders at 240 x 320 and resizes
as the published pixel policies do (bilinear, no antialiasing). ``fast`` renders a small image.
"""

from __future__ import annotations

import math

import numpy as np

from env.block_pushing.sim import BlockPushSim

HEIGHT, WIDTH = 240, 320
_POSITION = (1.0, 0.0, 0.75)
_EULER = (math.pi / 4, math.pi, -math.pi / 2)
_FOCAL = 0.803 * 320  # pixels
_NEAR, _FAR = 0.01, 10.0


def width_of(height: int) -> int:
    """The width that goes with a height (4:3)."""
    return round(height * WIDTH / HEIGHT)


class Camera:
    """Takes images of one simulation."""

    def __init__(self, sim: BlockPushSim) -> None:
        self._sim, p = sim, sim.bullet
        rotation = np.array(p.getMatrixFromQuaternion(p.getQuaternionFromEuler(_EULER)))
        rotation = rotation.reshape(3, 3)
        look_at = np.array(_POSITION) + rotation @ (0, 0, 1)
        up = rotation @ (0, -1, 0)
        self.view = p.computeViewMatrix(_POSITION, look_at.tolist(), up.tolist())
        field = math.degrees(2 * math.atan2(HEIGHT / 2, _FOCAL))
        self.projection = p.computeProjectionMatrixFOV(field, WIDTH / HEIGHT, _NEAR, _FAR)

    def picture(self, height: int = HEIGHT, *, fast: bool = False) -> np.ndarray:
        """uint8 [height, 4/3 height, 3], upright."""
        if fast or height == HEIGHT:
            return self._render(height)
        return resize(self._render(HEIGHT), height, width_of(height))

    def _render(self, height: int) -> np.ndarray:
        p, width = self._sim.bullet, width_of(height)
        rgba = p.getCameraImage(
            width,
            height,
            self.view,
            self.projection,
            flags=p.ER_NO_SEGMENTATION_MASK,
            renderer=p.ER_TINY_RENDERER,
            physicsClientId=self._sim.client,
        )[2]
        return np.ascontiguousarray(np.reshape(rgba, (height, width, 4))[..., :3], np.uint8)


def resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """uint8 [H, W, 3] -> [height, width, 3]: bilinear, half-pixel centres, no antialiasing."""
    rows, columns = _taps(image.shape[0], height), _taps(image.shape[1], width)
    values = image.astype(np.float32)
    low, high, share = rows
    values = values[low] * (1 - share)[:, None, None] + values[high] * share[:, None, None]
    low, high, share = columns
    values = values[:, low] * (1 - share)[:, None] + values[:, high] * share[:, None]
    return np.rint(values).astype(np.uint8)


def _taps(size: int, wanted: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each output pixel its two input pixels, and the weight of the second one."""
    centre = (np.arange(wanted) + 0.5) * size / wanted - 0.5
    low = np.floor(centre)
    share = (centre - low).astype(np.float32)
    first = np.clip(low, 0, size - 1).astype(int)
    return first, np.clip(low + 1, 0, size - 1).astype(int), share
