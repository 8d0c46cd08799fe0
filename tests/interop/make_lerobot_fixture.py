"""Writes tests/bc/fixtures/lerobot with the real lerobot (0.6.1), and what it reads from it.

    python3.12 -m venv /tmp/lerobot && /tmp/lerobot/bin/pip install 'lerobot[dataset]==0.6.1'
    /tmp/lerobot/bin/python tests/interop/make_lerobot_fixture.py

It needs no package of this repository: lerobot wants Python 3.12 and numpy 2.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import numpy as np
from lerobot.datasets.lerobot_dataset import LeRobotDataset

sys.path.insert(0, str(Path(__file__).resolve().parent))
from read_with_lerobot import read

FOLDER = Path(__file__).resolve().parent.parent / "bc" / "fixtures" / "lerobot"
FPS, SIZE, LENGTHS = 10, 32, (4, 2, 3)
PICTURE = {"shape": (SIZE, SIZE, 3), "names": ["height", "width", "channels"]}
NUMBER = {"shape": (1,), "names": None}
FEATURES = {
    "observation.state": {"dtype": "float32", "shape": (3,), "names": ["x", "y", "grip"]},
    "observation.environment_state": {"dtype": "float32", "shape": (2,), "names": ["ox", "oy"]},
    "action": {"dtype": "float32", "shape": (2,), "names": ["dx", "dy"]},
    "next.reward": {"dtype": "float32", **NUMBER},
    "next.done": {"dtype": "bool", **NUMBER},
    "next.success": {"dtype": "bool", **NUMBER},
    "observation.images.front": {"dtype": "video", **PICTURE},
    "observation.images.wrist": {"dtype": "image", **PICTURE},
}


def picture(step: int, episode: int) -> np.ndarray:
    """uint8 [SIZE, SIZE, 3]: a square that moves over a gradient."""
    rows, columns = np.mgrid[:SIZE, :SIZE]
    out = np.stack([rows * 7, columns * 7, np.full_like(rows, 60 * episode)], axis=-1)
    out[4 * step : 4 * step + 8, 8:16] = (250, 30 * step, 200)
    return out.clip(0, 255).astype(np.uint8)


def main() -> None:
    """Replace the fixture."""
    shutil.rmtree(FOLDER, ignore_errors=True)
    root = FOLDER / "push"
    dataset = LeRobotDataset.create(
        "local/push", FPS, FEATURES, root=root, robot_type="gantry", use_videos=True
    )
    rng = np.random.default_rng(0)
    for episode, length in enumerate(LENGTHS):
        success = episode != 1
        for step in range(length):
            last = step == length - 1
            state, action = rng.uniform(-1, 1, 3), rng.uniform(-1, 1, 2)
            frame = {
                "observation.state": state.astype(np.float32),
                "observation.environment_state": rng.uniform(-1, 1, 2).astype(np.float32),
                "action": action.astype(np.float32),
                "next.reward": np.array([last and success], np.float32),
                "next.done": np.array([last]),
                "next.success": np.array([last and success]),
                "observation.images.front": picture(step, episode),
                "observation.images.wrist": picture(step, episode)[::-1].copy(),
                "task": "push the block",
            }
            dataset.add_frame(frame)
        dataset.save_episode()
    dataset.finalize()
    read(root, FOLDER / "expected.npz", stats=False)


if __name__ == "__main__":
    main()
