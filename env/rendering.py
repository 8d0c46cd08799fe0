"""Offscreen images of MuJoCo models: several models side by side in one process.

All renderers of a process share one OpenGL context, and each selects its own framebuffer
before drawing. (A framebuffer is bound per context, not per renderer: without this, the
second renderer would draw into the first one's framebuffer and read from it.) The context is
created for the first image, never at import, so that worker processes make their own.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from common_utils.gl import APT_LINE, BACKENDS, best_backend, load_triton_before_mesa
from env import render_slots
from env.core import EnvError

_context: Any = None
_context_pid = -1


def _shared_context() -> Any:
    """The process's only GL context, made current; EnvError with advice if there is none."""
    global _context, _context_pid
    if _context is None or _context_pid != os.getpid():
        backend = os.environ.get("MUJOCO_GL", "")
        if backend not in BACKENDS:
            backend = "disabled" if backend in ("disabled", "off", "0") else best_backend()
        if backend == "disabled":
            raise EnvError(
                "images are asked for, but OpenGL rendering is not available here (MUJOCO_GL="
                f"{os.environ.get('MUJOCO_GL', 'unset')}). Install the libraries ({APT_LINE}) and "
                "export MUJOCO_GL=egl or osmesa, or use states only; "
                "python -m common_utils.doctor explains"
            )
        try:
            _context = _open(backend)
        except Exception as error:  # PyOpenGL raises many kinds
            raise EnvError(
                f"OpenGL back end '{backend}' does not start: {error!r}; install {APT_LINE} or "
                "try the other of egl, osmesa in MUJOCO_GL"
            ) from error
        _context_pid = os.getpid()
        _context.make_current()
        render_slots.take(render_slots.current_renderer())
    _context.make_current()
    return _context


def _open(backend: str) -> Any:
    load_triton_before_mesa(rendering=True)
    # imported by name: MUJOCO_GL fixes mujoco.GLContext when mujoco is first imported
    if backend == "egl":
        from mujoco.egl import GLContext
    else:
        from mujoco.osmesa import GLContext
    return GLContext(1024, 1024)


class Renderer:
    """Draws one model at one size.

    Args:
        model: mujoco.MjModel; its visual quality settings are changed by ``quality``.
        height, width: pixels.
        quality: "faithful" leaves the model as it is; "fast" draws without multisampling,
            shadows and reflections (docs/environments.md has cost and difference).
        hidden_groups: geometry groups that are not drawn (robosuite: 0, the collision shapes).
    """

    def __init__(
        self,
        model: Any,
        height: int,
        width: int,
        quality: str = "faithful",
        hidden_groups: Sequence[int] = (),
    ) -> None:
        import mujoco

        self._mj, self._model = mujoco, model
        self._rect = mujoco.MjrRect(0, 0, width, height)
        self._gl = _shared_context()
        visual = model.vis
        saved = (visual.global_.offwidth, visual.global_.offheight, visual.quality.offsamples)
        visual.global_.offwidth, visual.global_.offheight = width, height
        if quality == "fast":
            visual.quality.offsamples = 0
        self._context = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_150.value)
        # these are read when the context is made; other renderers of this model set their own
        visual.global_.offwidth, visual.global_.offheight, visual.quality.offsamples = saved
        self._scene = mujoco.MjvScene(model, maxgeom=10_000)
        if quality == "fast":
            self._scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = 0
            self._scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = 0
        self._option, self._camera = mujoco.MjvOption(), mujoco.MjvCamera()
        for group in hidden_groups:
            self._option.geomgroup[group] = 0
        self._camera.type = mujoco.mjtCamera.mjCAMERA_FIXED

    def camera_id(self, name: str) -> int:
        """Number of a camera; for an unknown name an EnvError that lists the cameras."""
        mj, model = self._mj, self._model
        number = mj.mj_name2id(model, mj.mjtObj.mjOBJ_CAMERA, name)
        if number < 0:
            known = [model.camera(i).name for i in range(model.ncam)]
            raise EnvError(f"camera '{name}' does not exist; this model has {', '.join(known)}")
        return number

    def render(self, data: Any, camera: int) -> np.ndarray:
        """uint8 [H, W, 3] as the camera sees it, first row at the top."""
        mj = self._mj
        self._gl.make_current()
        self._camera.fixedcamid = camera
        mj.mjv_updateScene(
            self._model,
            data,
            self._option,
            None,
            self._camera,
            mj.mjtCatBit.mjCAT_ALL.value,
            self._scene,
        )
        mj.mjr_setBuffer(mj.mjtFramebuffer.mjFB_OFFSCREEN.value, self._context)
        mj.mjr_render(self._rect, self._scene, self._context)
        out = np.empty((self._rect.height, self._rect.width, 3), np.uint8)
        mj.mjr_readPixels(out, None, self._rect, self._context)
        return out[::-1]  # OpenGL's first row is the bottom

    def close(self) -> None:
        """Free the framebuffer and textures; safe to call twice."""
        if self._context is not None:
            self._gl.make_current()
            self._context.free()
            self._context = None


@functools.lru_cache
def _resize_weights(old: int, new: int) -> np.ndarray:
    """float32 [new, old]: the anti-aliased bicubic filter (a = -0.5) along one axis."""
    scale = max(old / new, 1.0)
    centre = (np.arange(new)[:, None] + 0.5) * (old / new)
    x = np.abs(np.arange(old) + 0.5 - centre) / scale
    near = (1.5 * x - 2.5) * x * x + 1.0
    far = ((-0.5 * x + 2.5) * x - 4.0) * x + 2.0
    weights = np.where(x < 1.0, near, np.where(x < 2.0, far, 0.0))
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)


def resize_picture(picture: np.ndarray, size: int) -> np.ndarray:
    """uint8 [H, W, 3] -> uint8 [size, size, 3], as ``common_utils.ibrl_utils.resize_images``.

    In NumPy, because worker processes that only simulate do not load torch.
    """
    height, width = picture.shape[:2]
    if (height, width) == (size, size):
        return picture
    rows = _resize_weights(height, size) @ picture.reshape(height, -1).astype(np.float32)
    columns = _resize_weights(width, size) @ rows.reshape(size, width, 3)
    return columns.clip(0, 255).round().astype(np.uint8)
