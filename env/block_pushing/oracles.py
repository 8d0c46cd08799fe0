"""Scripted experts of the block tasks.

They see the observation dict, as a policy does, and return a displacement of the effector's
target in metres. All geometry is relative to the effector's *target*, in the plane.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from env.block_pushing.env import BlockPushEnv
from env.block_pushing.sim import CONTROL_HZ
from env.block_pushing.tasks import reach_point
from env.core import EnvError, Expert

Obs = Mapping[str, np.ndarray]

PRE_BLOCK, NEXT_TO_BLOCK, TOUCHING = 0.05, 0.03, 0.01  # behind the block's centre
ARRIVED = 0.001
SPEED, PRE_BLOCK_SPEED, ORIENT_SPEED, REACH_SPEED = 0.35, 0.3, 0.15, 0.2  # metres per second
TURN_NEEDED, TURN_DONE = 0.2, 0.03  # radians
ORIENT_RADIUS, ORIENT_ANGLE = 0.025, 0.2


class ReachOracle:
    """Straight to the point behind the block."""

    phase = ""

    def __init__(self, noise_std: float = 0.0) -> None:
        self.noise_std = noise_std

    def reset(self, rng: np.random.Generator) -> None:
        """Before each episode."""
        self.rng = rng
        self._point: np.ndarray | None = None

    def delta(self, obs: Obs) -> np.ndarray:
        """Displacement float32 [2]."""
        if self._point is None:  # fixed when the episode starts
            block, target = obs["block_translation"], obs["target_translation"]
            self._point = np.array(reach_point(tuple(block), tuple(target)))
        return self._limited(self._point - obs["effector_target_translation"], REACH_SPEED)

    def _limited(self, xy: np.ndarray, speed: float) -> np.ndarray:
        """Add noise, then limit the length to what ``speed`` allows in one control step."""
        if self.noise_std > 0:
            xy = xy + self.rng.normal(0.0, self.noise_std, 2)
        longest, length = speed / CONTROL_HZ, float(np.linalg.norm(xy))
        if length > longest:
            xy = xy / length * longest
        return xy.astype(np.float32)


class PushOracle(ReachOracle):
    """Go behind the block and push it; if it points away from the target, turn it first."""

    def reset(self, rng: np.random.Generator) -> None:
        """Before each episode."""
        super().reset(rng)
        self.phase = "move_to_pre_block"

    def delta(self, obs: Obs) -> np.ndarray:
        """Displacement float32 [2]."""
        return self._limited(*self._push(obs, "block", "target"))

    def _push(self, obs: Obs, block: str, target: str) -> tuple[np.ndarray, float]:
        """(desired displacement, speed). If a phase ends, the next one starts in the same call."""
        place, effector = obs[f"{block}_translation"], obs["effector_target_translation"]
        direction = unit(obs[f"{target}_translation"] - place)
        error = quarter_turn(
            math.atan2(direction[1], direction[0]) - float(obs[f"{block}_orientation"][0])
        )
        xy, speed = np.zeros(2), SPEED
        if self.phase == "move_to_pre_block":
            speed = PRE_BLOCK_SPEED
            xy = place - PRE_BLOCK * direction - effector
            if np.linalg.norm(xy) < ARRIVED:
                self.phase = "move_to_block"
        if self.phase == "move_to_block":
            xy = place - NEXT_TO_BLOCK * direction - effector
            if np.linalg.norm(xy) < ARRIVED:
                self.phase = "push_block"
            if error > TURN_NEEDED:
                self.phase = "orient_block_left"
            elif error < -TURN_NEEDED:
                self.phase = "orient_block_right"
        if self.phase == "push_block":
            xy = place - TOUCHING * direction - effector
            if abs(error) > TURN_NEEDED:
                self.phase = "move_to_pre_block"
        if self.phase == "orient_block_left":
            speed, xy = ORIENT_SPEED, around(place, effector, ORIENT_ANGLE)
            if error < TURN_DONE:
                self.phase = "move_to_pre_block"
        if self.phase == "orient_block_right":
            speed, xy = ORIENT_SPEED, around(place, effector, -ORIENT_ANGLE)
            if error > -TURN_DONE:
                self.phase = "move_to_pre_block"
        return xy, speed


class DiscontinuousOracle(PushOracle):
    """Push to the first target, then to the second.

    Args:
        tolerance: the first target counts as reached within this distance.
        wait: number of steps to stand still before continuing.
    """

    def __init__(self, noise_std: float = 0.0, tolerance: float = 0.04, wait: int = 0) -> None:
        super().__init__(noise_std)
        self.tolerance, self.wait = tolerance, wait

    def reset(self, rng: np.random.Generator) -> None:
        """Before each episode."""
        super().reset(rng)
        self.goal, self._waited = "target", 0

    def delta(self, obs: Obs) -> np.ndarray:
        """Displacement float32 [2]."""
        place = obs["block_translation"]
        near = np.linalg.norm(place - obs["target_translation"]) < self.tolerance
        if self.goal == "target" and near:
            self.goal = "target2"  # the phase does not change
        if self.goal == "target2" and self._waited < self.wait:
            self._waited += 1
            return np.zeros(2, np.float32)
        return self._limited(*self._push(obs, "block", self.goal))


class MultimodalOracle(PushOracle):
    """Push one block into one target, go back to the start, then push the other block.

    ``reset`` draws which block is first, and its target (``order`` fixes both).
    """

    def __init__(self, noise_std: float = 0.0, tolerance: float = 0.04) -> None:
        super().__init__(noise_std)
        self.tolerance = tolerance

    def reset(
        self, rng: np.random.Generator, order: tuple[tuple[str, str], ...] | None = None
    ) -> None:
        """Before each episode."""
        super().reset(rng)
        self.order = order or ORDERS[int(rng.integers(len(ORDERS)))]
        self.number = 0
        self._origin: np.ndarray | None = None
        self._first_pre_block: np.ndarray | None = None

    def delta(self, obs: Obs) -> np.ndarray:
        """Displacement float32 [2]."""
        effector = obs["effector_target_translation"]
        block, target = self.order[self.number]
        place, goal = obs[f"{block}_translation"], obs[f"{target}_translation"]
        if self._origin is None:
            self._origin = np.array(effector)
            self._first_pre_block = place - PRE_BLOCK * unit(goal - place)
        if self.number == 0 and np.linalg.norm(place - goal) < self.tolerance:
            self.number = 1
            self.phase = "return_to_first_preblock"
        if self.phase == "return_to_first_preblock":
            xy = self._first_pre_block - effector
            if np.linalg.norm(xy) >= ARRIVED:
                return self._limited(xy, PRE_BLOCK_SPEED)
            self.phase = "return_to_origin"
        if self.phase == "return_to_origin":
            xy = self._origin - effector
            if np.linalg.norm(xy) < ARRIVED:
                self.phase = "move_to_pre_block"  # from the next step on
            return self._limited(xy, PRE_BLOCK_SPEED)
        return self._limited(*self._push(obs, *self.order[self.number]))


ORDERS = tuple(
    ((f"block{b}", f"target{t}"), (f"block{_b}", f"target{_t}"))
    for b, _b in (("", "2"), ("2", ""))
    for t, _t in (("", "2"), ("2", ""))
)


def block_oracle(task: str, noise_std: float = 0.0, **options: Any) -> ReachOracle:
    """The expert of a task by its plain name; ``options`` are those of its class."""
    try:
        return ORACLES[task](noise_std, **options)
    except KeyError:
        raise EnvError(f"no scripted expert for block_pushing task '{task}'") from None


ORACLES: dict[str, type[ReachOracle]] = {
    "REACH": ReachOracle,
    "PUSH": PushOracle,
    "INSERT": PushOracle,
    "PUSH_DISCONTINUOUS": DiscontinuousOracle,
    "PUSH_MULTIMODAL": MultimodalOracle,
}


def unit(vector: np.ndarray) -> np.ndarray:
    """The vector, scaled to length 1."""
    return vector / np.linalg.norm(vector)


def quarter_turn(angle: float) -> float:
    """The angle folded to [-pi/4, pi/4]: a square block looks the same every quarter turn."""
    return (angle + math.pi / 4) % (math.pi / 2) - math.pi / 4


def around(block: np.ndarray, effector: np.ndarray, angle: float) -> np.ndarray:
    """Displacement to a point on the small circle around the block, turned by ``angle``."""
    x, y = unit(effector - block)
    c, s = math.cos(angle), math.sin(angle)
    return block + ORIENT_RADIUS * np.array([c * x - s * y, s * x + c * y]) - effector


class BlockPushOracle(Expert):
    """The expert of a block task, in the units of the framework.

    Args:
        env: the environment it acts in.
        noise: standard deviation of Gaussian noise on the displacement, metres.
        options: options of the task's class above.
    """

    def __init__(self, env: BlockPushEnv, noise: float = 0.0, **options: Any) -> None:
        self.env = env
        self.oracle = block_oracle(env.task.name, noise, **options)

    @property
    def phase(self) -> str:
        """The phase of the task's oracle, "" if it has none."""
        return self.oracle.phase

    def reset(self, rng: np.random.Generator) -> None:
        """Before each episode."""
        self.oracle.reset(rng)

    def act(self) -> np.ndarray:
        """Action float32 [2] in [-1, 1] for the environment's current state."""
        return self.env.from_native(self.oracle.delta(self.env.plain_observation()))
