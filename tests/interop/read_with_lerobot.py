"""Reads a LeRobot dataset with the real lerobot, step by step, into an .npz file.

/tmp/lerobot/bin/python tests/interop/read_with_lerobot.py FOLDER OUT.npz
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from lerobot.datasets.lerobot_dataset import LeRobotDataset


def read(root: Path, out: Path, stats: bool = True) -> None:
    """All steps of all features; pictures as uint8 [T, 3, H, W]; ``stats/...`` with ``stats``."""
    dataset = LeRobotDataset("local/dataset", root=root, video_backend="pyav")
    steps = [dataset[i] for i in range(len(dataset))]
    arrays = {}
    for key, first in steps[0].items():
        values = [step[key] for step in steps]
        if isinstance(first, torch.Tensor):
            array = torch.stack(values).numpy()
            if key in dataset.meta.camera_keys:
                array = np.round(array * 255).astype(np.uint8)
        else:
            array = np.array(values)
        arrays[key] = array
    for key, values in dataset.meta.stats.items() if stats else ():
        arrays |= {f"stats/{key}/{name}": value for name, value in values.items()}
    arrays["fps"] = np.array(dataset.meta.fps)
    arrays["lengths"] = np.array([episode["length"] for episode in dataset.meta.episodes])
    np.savez_compressed(out, **arrays)


if __name__ == "__main__":
    read(Path(sys.argv[1]), Path(sys.argv[2]))
