"""The block tasks: initial poses, observations, rewards and ends of episodes.

All draws come from one ``numpy.random.RandomState`` in the published order, so that seed k
starts the same episode as in the original. For a new episode ``place`` is called, and ``start``
when the blocks have come to rest. Then ``advance`` is called after each control step.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from env.block_pushing.sim import WORKSPACE_CENTRE_X, BlockPushSim

X_SHIFT, Y_SHIFT = 0.1, 0.15
BLOCK_Y, TARGET_Y = -0.2, 0.2
REACH_BEHIND = 0.05
# rejection sampling starts over after this many tries, since it might never succeed
MAX_TRIES = 1000

Rng = np.random.RandomState


def distance(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    """Distance in the first two coordinates."""
    return math.hypot(a[0] - b[0], a[1] - b[1])


@dataclass
class Push:
    """One block, one target: the block's centre must come within ``tolerance`` of the target.

    The reward is the best progress so far, 1 - d / d_0, and 1 at the goal, where the episode
    ends.
    """

    # of the task's expert, besides the noise
    oracle_options: ClassVar[tuple[str, ...]] = ()
    tolerance: float = 0.01
    blocks: ClassVar[tuple[str, ...]] = ("block",)
    targets: ClassVar[tuple[str, ...]] = ("zone",)
    time_limit: ClassVar[int] = 100

    def place(self, sim: BlockPushSim, rng: Rng) -> None:
        """Draw the poses of blocks and targets."""
        sim.place_block(0, *draw_block(rng))
        sim.place_target(0, *draw_target(rng))

    def start(self, sim: BlockPushSim) -> None:
        """The episode begins, and everything is at rest."""
        self._best = 0.0
        self._initial = self.goal_distance(sim)

    def goal_distance(self, sim: BlockPushSim) -> float:
        """Distance from the block to its target."""
        return distance(sim.block_pose(0), sim.target_poses[0])

    def advance(self, sim: BlockPushSim) -> tuple[float, bool]:
        """(reward of this control step, whether the goal is reached)."""
        now = self.goal_distance(sim)
        self._best = max(self._best, 1.0 - now / self._initial)
        if now < self.tolerance:
            self._best = 1.0
        return self._best, now < self.tolerance

    def succeeded(self, sim: BlockPushSim) -> bool:
        """Whether the episode is a success; called at its end."""
        return self.goal_distance(sim) < self.tolerance

    def metrics(self, sim: BlockPushSim) -> dict[str, float]:
        """Measurements that evaluations report besides success."""
        return {"final_goal_distance": self.goal_distance(sim)}


@dataclass
class Reach(Push):
    """The effector must come to a point 5 cm behind the block, on the far side of the target."""

    time_limit: ClassVar[int] = 50

    def start(self, sim: BlockPushSim) -> None:
        """Fix the point to reach."""
        self.goal = reach_point(sim.block_pose(0), sim.target_poses[0])
        super().start(sim)

    def goal_distance(self, sim: BlockPushSim) -> float:
        """Distance from the effector to the point."""
        return distance(sim.effector_xy(), self.goal)


@dataclass
class Insert(Push):
    """The target is a pen with three walls; as in Push, the block should reach its pose."""

    targets: ClassVar[tuple[str, ...]] = ("insert",)
    time_limit: ClassVar[int] = 50


@dataclass
class PushDiscontinuous(Push):
    """One block, two targets far apart: the block must reach the first, then the second.

    When both were reached, in any order, the reward is 1 and the episode ends. It is a success if
    the block is then at the second target.
    """

    oracle_options: ClassVar[tuple[str, ...]] = ("wait",)
    tolerance: float = 0.04
    targets: ClassVar[tuple[str, ...]] = ("zone", "zone2")
    time_limit: ClassVar[int] = 200
    target_y: ClassVar[tuple[float, float]] = (0.0, 0.4)
    min_separation: ClassVar[float] = 0.15  # of the targets, in x

    def place(self, sim: BlockPushSim, rng: Rng) -> None:
        """Targets have a fixed y; x of the second one is drawn by rejection."""
        sim.place_block(0, *draw_block(rng))
        apart = False
        while not apart:
            first = (draw_x(rng), self.target_y[0], draw_target_yaw(rng))
            for _ in range(MAX_TRIES):
                x = draw_x(rng)
                apart = abs(x - first[0]) > self.min_separation
                if apart:
                    break
            second = (x, self.target_y[1], draw_target_yaw(rng))
        sim.place_target(0, *first)
        sim.place_target(1, *second)

    def start(self, sim: BlockPushSim) -> None:
        """No target was reached yet."""
        self._nearest = [math.inf, math.inf]

    def goal_distance(self, sim: BlockPushSim) -> float:
        """Distance from the block to the second target."""
        return distance(sim.block_pose(0), sim.target_poses[1])

    def advance(self, sim: BlockPushSim) -> tuple[float, bool]:
        """(1.0, True) once both targets were reached."""
        block = sim.block_pose(0)
        for i, target in enumerate(sim.target_poses):
            self._nearest[i] = min(self._nearest[i], distance(block, target))
        done = max(self._nearest) < self.tolerance
        return float(done), done

    def metrics(self, sim: BlockPushSim) -> dict[str, float]:
        """Smallest distance to each target, and the final distance to the second."""
        return {
            "min_dist_first_goal": self._nearest[0],
            "min_dist_second_goal": self._nearest[1],
            "final_dist_second_goal": self.goal_distance(sim),
        }


@dataclass
class PushMultimodal(Push):
    """Two blocks, two targets: each block must go into its own target, in any pairing and order."""

    tolerance: float = 0.04
    blocks: ClassVar[tuple[str, ...]] = ("block", "block2")
    targets: ClassVar[tuple[str, ...]] = ("zone", "zone2")
    time_limit: ClassVar[int] = 200
    min_block_separation: ClassVar[float] = 0.1  # in x
    min_target_separation: ClassVar[float] = 0.12  # in x

    def place(self, sim: BlockPushSim, rng: Rng) -> None:
        """Place blocks, then targets; the second of each is drawn by rejection."""
        for i, pose in enumerate(self._pair(rng, BLOCK_Y, self.min_block_separation)):
            sim.place_block(i, *pose)
        for i, pose in enumerate(self._pair(rng, TARGET_Y, self.min_target_separation)):
            sim.place_target(i, *pose)

    @staticmethod
    def _pair(rng: Rng, y: float, separation: float) -> list[tuple[float, float, float]]:
        draw_yaw = draw_block_yaw if y == BLOCK_Y else draw_target_yaw
        apart = False
        while not apart:
            first = (draw_x(rng), draw_y(rng, y), draw_yaw(rng))
            for _ in range(MAX_TRIES):
                xy = (draw_x(rng), draw_y(rng, y))
                apart = abs(xy[0] - first[0]) > separation
                if apart:
                    break
            second = (*xy, draw_yaw(rng))
        return [first, second]

    def start(self, sim: BlockPushSim) -> None:
        """There is no state besides the simulator's."""

    def _inside(self, sim: BlockPushSim) -> list[int | None]:
        """For each block the nearest target, if the block is inside it."""
        found: list[int | None] = []
        for i in range(len(self.blocks)):
            distances = [distance(sim.block_pose(i), t) for t in sim.target_poses]
            nearest = int(np.argmin(distances))
            found.append(nearest if distances[nearest] < self.tolerance else None)
        return found

    def succeeded(self, sim: BlockPushSim) -> bool:
        """Each block is inside a different target."""
        return set(self._inside(sim)) == {0, 1}

    def advance(self, sim: BlockPushSim) -> tuple[float, bool]:
        """(1.0, True) when each block is inside a different target."""
        done = self.succeeded(sim)
        return float(done), done

    def metrics(self, sim: BlockPushSim) -> dict[str, float]:
        """Number of targets with a block inside."""
        return {"blocks_in_targets": float(len(set(self._inside(sim)) - {None}))}


# ------------------------------------------------------------------------- draws


def draw_x(rng: Rng) -> float:
    """x within 10 cm of the middle."""
    return WORKSPACE_CENTRE_X + rng.uniform(-X_SHIFT, X_SHIFT)


def draw_y(rng: Rng, middle: float) -> float:
    """y within 15 cm of ``middle``."""
    return middle + rng.uniform(-Y_SHIFT, Y_SHIFT)


def draw_block_yaw(rng: Rng) -> float:
    """Yaw, as published: ``uniform(pi)`` draws between pi and 1, not between 0 and pi."""
    return float(rng.uniform(math.pi))


def draw_target_yaw(rng: Rng) -> float:
    """Yaw within 30 degrees of pi."""
    return math.pi + rng.uniform(-math.pi / 6, math.pi / 6)


def draw_block(rng: Rng) -> tuple[float, float, float]:
    """(x, y, yaw), drawn in that order."""
    return draw_x(rng), draw_y(rng, BLOCK_Y), draw_block_yaw(rng)


def draw_target(rng: Rng) -> tuple[float, float, float]:
    """(x, y, yaw), drawn in that order."""
    return draw_x(rng), draw_y(rng, TARGET_Y), draw_target_yaw(rng)


def reach_point(block: tuple[float, ...], target: tuple[float, ...]) -> tuple[float, float]:
    """The point 5 cm behind the block, as seen from the target."""
    length = distance(block, target)
    return (
        block[0] - REACH_BEHIND * (target[0] - block[0]) / length,
        block[1] - REACH_BEHIND * (target[1] - block[1]) / length,
    )


# ------------------------------------------------------------------- observations


def observation(sim: BlockPushSim) -> dict[str, np.ndarray]:
    """The original's observation dict, float64: translations [2], orientations [1] (yaw)."""
    poses = {f"block{_suffix(i)}": sim.block_pose(i) for i in range(len(sim.blocks))} | {
        f"target{_suffix(i)}": pose for i, pose in enumerate(sim.target_poses)
    }
    obs: dict[str, np.ndarray] = {
        "effector_translation": np.array(sim.effector_xy()),
        "effector_target_translation": np.array(sim.effector_target),
    }
    for name, (x, y, yaw) in poses.items():
        obs[f"{name}_translation"] = np.array([x, y])
        obs[f"{name}_orientation"] = np.array([yaw])
    return obs


def _suffix(number: int) -> str:
    return "" if number == 0 else str(number + 1)


def state_vector(obs: dict[str, np.ndarray]) -> np.ndarray:
    """float32 [D]: the keys in alphabetical order."""
    return np.concatenate([obs[k] for k in sorted(obs)]).astype(np.float32)
