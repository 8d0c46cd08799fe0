"""Gymnasium's InvertedPendulum behind the environment interface, with faults on request."""

from __future__ import annotations

import os
import time
from typing import Any

import gymnasium
import numpy as np

from common_utils.specs import ArraySpec, EnvSpec
from env.core import Env, EnvError


class PendulumEnv(Env):
    """The real MuJoCo pendulum; success = still upright after ``horizon`` steps."""

    def __init__(self, cfg: dict[str, Any]) -> None:
        self.cfg = cfg
        if cfg.get("broken_build"):
            raise RuntimeError("no such simulator")
        mode = "rgb_array" if cfg.get("render") else None
        self.broken = False
        self.env = gymnasium.make("InvertedPendulum-v5", render_mode=mode)
        self.horizon = cfg.get("horizon", 30)
        self.spec = EnvSpec("gym", "pendulum", {"state": ArraySpec((4,))}, 1, self.horizon)
        self.seed, self.actions = -1, []

    def reset(self, *, seed: int):
        self.seed, self.actions, self.broken = seed, [], False
        obs, _ = self.env.reset(seed=seed)
        return {"state": obs.astype(np.float32)}, {"success": False}

    def step(self, action: np.ndarray):
        self._misbehave()
        time.sleep(self.cfg.get("step_seconds", 0))
        self.actions.append([float(a) for a in action])
        obs, _, terminated, _, _ = self.env.step(np.asarray(action) * 3)
        truncated = not terminated and len(self.actions) >= self.horizon
        reward = float(1 - abs(obs[1]))
        if self.broken:
            if self.cfg["fault"] == "reward":
                reward = np.nan
            else:
                obs = np.full_like(obs, np.inf)
        return (
            {"state": obs.astype(np.float32)},
            reward,
            terminated,
            truncated,
            {"success": truncated},
        )

    def _misbehave(self) -> None:
        if self.seed != self.cfg.get("bad_seed") or len(self.actions) != 3:
            return
        if self.cfg["fault"] == "hang":
            time.sleep(600)
        if self.cfg["fault"] == "die":
            os.kill(os.getpid(), 9)
        if self.cfg["fault"] == "refuse":
            raise EnvError("step: no such task")
        if self.cfg["fault"] == "raise":
            raise ValueError("the simulation diverged")
        self.broken = True

    def render(self, camera: str | None = None) -> np.ndarray:
        if self.env.render_mode:
            return self.env.render()
        # states only: an image of the cart and the pole, for machines without GL
        x, angle = self.env.unwrapped.data.qpos[:2]
        picture = np.full((64, 97, 3), 30, np.uint8)
        for k in range(30):
            column = int(np.clip(48 + 20 * x + k * np.sin(angle), 0, 96))
            picture[int(50 - k * np.cos(angle)), column] = 250
        return picture

    def close(self) -> None:
        self.env.close()

    def state_dict(self) -> dict[str, Any]:
        return {"seed": self.seed, "actions": self.actions}

    def load_state_dict(self, state: dict[str, Any]):
        obs, _ = self.reset(seed=state["seed"])
        for action in state["actions"]:
            obs, *_ = self.step(np.array(action))
        return obs


def make(cfg: dict[str, Any]) -> PendulumEnv:
    """What evaluation workers call."""
    return PendulumEnv(cfg)
