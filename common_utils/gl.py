"""Finds an OpenGL back end that really renders here, by rendering in a separate process.

    python -m common_utils.gl        # prints egl, osmesa or disabled

A back end that imports may still fail, abort or hang when it draws, so each is tried by a
small program with a time limit. The answer is remembered in the user's cache folder until the GL
libraries change.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

from common_utils.atomic import atomic_json
from common_utils.errors import run_program
from common_utils.paths import cache_folder

BACKENDS = ("egl", "osmesa")
APT_LINE = "apt-get install -y libosmesa6 libegl1 libgl1"
_TIMEOUT_S = 60.0

_PROGRAM = """
import mujoco
model = mujoco.MjModel.from_xml_string(
    '<mujoco><worldbody><light pos="0 0 3"/><geom type="sphere" size=".2" rgba="1 0 0 1"/>'
    '<camera name="c" pos="0 -1 0" xyaxes="1 0 0 0 0 1"/></worldbody></mujoco>')
data = mujoco.MjData(model)
mujoco.mj_forward(model, data)
renderer = mujoco.Renderer(model, 32, 32)
renderer.update_scene(data, camera="c")
red = int(renderer.render()[16, 16, 0])
assert red > 50, f"rendered picture is wrong: red {red} in the middle of a red ball"
print("rendered")
"""


def probe(backend: str) -> tuple[bool, str]:
    """Render a red ball with ``backend``: (whether it worked, a message)."""
    env = os.environ | {"MUJOCO_GL": backend}
    env.pop("PYOPENGL_PLATFORM", None)
    try:
        done = subprocess.run(
            [sys.executable, "-c", _PROGRAM],
            env=env,
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
        )
    except subprocess.TimeoutExpired:
        return False, f"{backend}: no picture within {_TIMEOUT_S:.0f} s"
    if done.returncode == 0 and "rendered" in done.stdout:
        return True, f"{backend}: renders"
    lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
    return False, f"{backend}: {lines[-1]}"


def _fingerprint() -> str:
    """Changes when GL libraries or devices come and go."""
    listing = subprocess.run(
        "{ ldconfig -p || /sbin/ldconfig -p; } 2>/dev/null | grep -E 'lib(OSMesa|EGL|GL)\\.so';"
        " ls /dev/dri /dev/nvidia* 2>/dev/null",
        shell=True,
        capture_output=True,
        text=True,
    ).stdout
    return f"{sys.executable}\n{listing}"


def _cache_file() -> Path:
    """One for each Python: environments have different versions of mujoco."""
    name = hashlib.sha256(sys.executable.encode()).hexdigest()[:16]
    return cache_folder() / f"gl-{name}.json"


def best_backend(use_cache: bool = True) -> str:
    """ "egl" where it renders, else "osmesa", else "disabled"."""
    key, file = _fingerprint(), _cache_file()
    if use_cache:
        try:
            cached = json.loads(file.read_text())
            if cached["key"] == key and cached["backend"] in (*BACKENDS, "disabled"):
                return str(cached["backend"])
        except (OSError, ValueError, KeyError):
            pass
    found = next((b for b in BACKENDS if probe(b)[0]), "disabled")
    try:
        atomic_json({"key": key, "backend": found}, file)
    except OSError:
        pass  # no home folder: this only costs the probe each time
    return found


def load_triton_before_mesa(rendering: bool = False) -> None:
    """Call before OpenGL libraries are loaded: with ``MUJOCO_GL=osmesa`` before mujoco is
    imported, else before a context is made (``rendering``).

    torch imports triton when an optimiser is made, and triton's LLVM crashes the process if
    Mesa's (the software renderer) was loaded before it; the other order is harmless.
    """
    needed = rendering or os.environ.get("MUJOCO_GL") == "osmesa"
    if needed and importlib.util.find_spec("triton") is not None:
        with contextlib.suppress(ImportError):
            importlib.import_module("triton._C.libtriton")


def main() -> None:
    """Print the back end."""
    print(best_backend())


if __name__ == "__main__":
    sys.exit(run_program(main))
