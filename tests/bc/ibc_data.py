"""A small recording of the particle in its native action range, as the original's files are."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np


def write_particle(path: Path, lengths: tuple[int, ...] = (12, 9, 15), *, low: float = 0.0) -> Path:
    """Positions drift to the goals; actions are the set-points, in [low, 1].

    The last row of each demonstration is a boundary row (step_type 2).
    """
    rng = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs["env_args"] = json.dumps({"env_name": "Particle-v0", "n_dim": 2})
        for number, length in enumerate(lengths):
            demo = data.create_group(f"demo_{number}")
            goals = rng.random((2, 2))
            second = (np.arange(length) > length // 2)[:, None]
            position = rng.random((length, 2))
            demo["actions"] = np.where(second, goals[1], goals[0]).astype(np.float32) + low
            demo["rewards"] = np.zeros(length, np.float32)
            demo["dones"] = np.eye(length, dtype=np.uint8)[-1]
            kinds = np.ones(length, np.uint8)
            kinds[0], kinds[-1] = 0, 2
            demo["step_type"] = kinds
            obs = demo.create_group("obs")
            # written in another order than the alphabetical one
            obs["vel_agent"] = np.full((length, 2), number, np.float32)
            obs["pos_second_goal"] = np.broadcast_to(goals[1], (length, 2)).astype(np.float32)
            obs["pos_agent"] = position.astype(np.float32)
            obs["pos_first_goal"] = np.broadcast_to(goals[0], (length, 2)).astype(np.float32)
    return path
