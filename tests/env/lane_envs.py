"""Environments for tests of lanes: small, with pictures and recorded arrays, and with faults."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import numpy as np

from common_utils.specs import ArraySpec, EnvSpec
from env.core import EnvError, ObsDict
from env.seeded import SeededEnv

HORIZON = 6


class LaneEnv(SeededEnv):
    """A point that moves; ``cfg``: fault ("die", "hang" or "bug"), at (step), folder (one file per
    fault), times (how often), replayable."""

    def __init__(self, cfg: dict[str, Any]) -> None:
        self.cfg, self.replayable = cfg, bool(cfg.get("replayable", True))
        observations = {"state": ArraySpec((3,)), "cam": ArraySpec((3, 40, 40), "uint8")}
        self.spec = EnvSpec("lanes", "point", observations, 2, HORIZON, ("cam",))

    def reset(self, *, seed: int) -> tuple[ObsDict, dict[str, Any]]:
        self._begin(seed)
        self.point = np.random.default_rng(seed).uniform(-1, 1, 2)
        return self._observe(), self._info()

    def step(self, action: np.ndarray) -> tuple[ObsDict, float, bool, bool, dict[str, Any]]:
        moved = self._take(action)
        self._fail_at(len(self._actions))
        self.point = self.point + 0.1 * moved
        terminated, truncated = self._end(False)
        return self._observe(), float(self.point[0]), terminated, truncated, self._info()

    def _fail_at(self, step: int) -> None:
        fault, folder = self.cfg.get("fault"), self.cfg.get("folder")
        if step != self.cfg.get("at") or len(os.listdir(folder)) >= self.cfg.get("times", 1):
            return
        (Path(folder) / f"{os.getpid()}").touch()
        if fault == "die":
            os._exit(3)
        if fault == "hang":
            time.sleep(600)
        raise ZeroDivisionError("a bug")

    def _observe(self) -> ObsDict:
        at = np.array([*self.point, len(self._actions)], np.float32)
        return {"state": at, "cam": np.full((3, 40, 40), int(100 * abs(at[0])) % 256, np.uint8)}

    def _info(self) -> dict[str, Any]:
        recorded = {"sim_state": self.point.copy(), "model": "xml"}
        return {"success": bool(self.point[0] > 0), "recorded": recorded}

    def render(self, camera: str | None = None) -> np.ndarray:
        return np.zeros((8, 8, 3), np.uint8)

    def close(self) -> None:
        pass


def make(cfg: dict[str, Any]) -> LaneEnv:
    """The maker that workers import."""
    return LaneEnv(cfg)


def refuse(cfg: dict[str, Any]) -> LaneEnv:
    """A maker of an environment that cannot be built here."""
    raise EnvError("task 'point': no such task")
