"""Scripted experts of the robosuite tasks, by task (how they move: env/robosuite/control.py).

The waypoints, waits and thresholds were found by measurement in robosuite 1.5.2.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from common_utils.lookup import resolve
from env.core import EnvError, Expert
from env.robosuite.control import (
    CLOSE,
    OPEN,
    UP,
    ArmExpert,
    Goal,
    Noise,
    Seed,
    TaskExpert,
    body_pose,
    site_position,
    wrapped,
    yaw_of,
)
from env.robosuite.env import RobosuiteEnv

# imported when the task is used
EXPERTS = {
    "Lift": f"{__name__}:LiftExpert",
    "PickPlaceCan": f"{__name__}:CanExpert",
    "NutAssemblySquare": f"{__name__}:SquareExpert",
    "TwoArmTransport": "env.robosuite.experts_twoarm:TransportExpert",
    "ToolHang": "env.robosuite.experts_toolhang:ToolHangExpert",
}


def task_expert(task: str, env: Any, seed: Seed, noise: Noise) -> TaskExpert:
    """The expert of ``task`` for the episode to which ``env`` (``make_sim``) has just been reset.

    Raises EnvError for a task without an expert.
    """
    if task not in EXPERTS:
        known = ", ".join(EXPERTS)
        raise EnvError(f"no scripted expert for robosuite task '{task}'; there is one for {known}")
    expert: TaskExpert = resolve(EXPERTS[task])(env, seed, noise)
    return expert


class RobosuiteExpert(Expert):
    """The expert of a robosuite environment.

    Args:
        env: the environment it acts in.
        noise: standard deviation of Gaussian noise on the position part of actions.
        jitter: metres by which waypoints vary; None: derived from the noise (``Noise.of``).
    """

    def __init__(
        self, env: RobosuiteEnv, noise: float = 0.0, *, jitter: float | None = None
    ) -> None:
        self.env = env
        self.noise = Noise.of(noise) if jitter is None else Noise(noise, jitter)
        self._playing: TaskExpert | None = None

    def reset(self, rng: np.random.Generator) -> None:
        """Called before each episode, after the environment's reset."""
        self._playing = task_expert(self.env.task.name, self.env.sim, rng, self.noise)

    def _now(self) -> TaskExpert:
        if self._playing is None:
            raise EnvError(
                "the expert has no episode yet; call reset after that of the environment"
            )
        return self._playing

    @property
    def phase(self) -> str:
        """The phases of its arms."""
        return self._now().phase

    @property
    def achieved(self) -> tuple[str, ...]:
        """The finished parts of the task, as seen in the simulator."""
        return tuple(self._now().achieved)

    def act(self) -> np.ndarray:
        """Action float32 [A] in [-1, 1] for the environment's current state."""
        return self._now().act()


class LiftExpert(ArmExpert):
    """Lift: go over the cube, down, close, up."""

    def __init__(self, env: Any, seed: Seed, noise: Noise) -> None:
        super().__init__(env, seed, noise)
        self._aside = self.hover_jitter()

    def _over_cube(self, offset: np.ndarray, noise: float = 1.0) -> Goal:
        position, rotation = body_pose(self.env, "cube_main")
        # the hand may grasp any of the cube's four sides: here the edge is chosen, and
        # rotation_with chooses the sign
        present = self.arm.opening_axis
        heading = np.arctan2(present[1], present[0])
        yaw = heading + wrapped(yaw_of(rotation) - heading, np.pi / 2)
        return Goal(position + offset, self.arm.down(yaw), OPEN, noise)

    def hover(self) -> Goal:
        goal = self._over_cube(0.06 * UP + self._aside)
        return self.go("descend") if self.arm.near(goal, 0.02, 0.15) else goal

    def descend(self) -> Goal:
        goal = self._over_cube(-0.005 * UP, noise=0.5)
        if self.arm.near(goal, 0.01, 0.15) or self.count >= 30:
            return self.go("close")
        return goal

    def close(self) -> Goal:
        if self.count >= 5:
            return self.go("lift")
        goal = self._over_cube(-0.005 * UP, noise=0.5)
        return Goal(goal.position, goal.rotation, CLOSE, 0.5)

    def lift(self) -> Goal:
        if self.count >= 25:
            return self.go("hover")
        return Goal(self.arm.position + 0.12 * UP, self.arm.rotation, CLOSE)


class CanExpert(ArmExpert):
    """PickPlaceCan: go over the can, grasp it, carry it to its compartment, release it."""

    # in front of the compartment's centre, which is at the limit of the arm's reach
    drop_offset = np.array([-0.035, -0.045, 0.0])
    carry_height = 1.10

    def __init__(self, env: Any, seed: Seed, noise: Noise) -> None:
        super().__init__(env, seed, noise)
        self._aside = self.hover_jitter()
        corner = env.target_bin_placements[env.object_to_id["can"]]
        self._drop = np.array([corner[0], corner[1], 0.0]) + self.drop_offset
        self._drop += self.jitter(1.5, most=0.025)
        self._yaw = yaw_of_axis(self.arm.opening_axis)
        self._hold = self.arm.position

    def _grasp(self) -> Goal:
        position, rotation = body_pose(self.env, "Can_main")
        yaw, height = self._yaw, 0.005
        if abs(rotation[2, 2]) < 0.7:  # the can lies on its side: grasp across its axis
            yaw, height = yaw_of_axis(rotation[:, 2]) + np.pi / 2, -0.005
        position[2] = max(position[2] + height, 0.83)
        return Goal(position, self.arm.down(yaw), OPEN)

    def hover(self) -> Goal:
        grasp = self._grasp()
        goal = Goal(grasp.position + 0.10 * UP + self._aside, grasp.rotation, OPEN)
        return self.go("descend") if self.arm.near(goal, 0.025, 0.2) else goal

    def descend(self) -> Goal:
        goal = self._grasp()
        if self.arm.near(goal, 0.012) or self.count >= 30:
            self._hold = self.arm.position
            return self.go("close")
        return Goal(goal.position, goal.rotation, OPEN, 0.5)

    def close(self) -> Goal:
        if self.count >= 9:
            return self.go("lift")
        return Goal(self._hold, self._grasp().rotation, CLOSE, 0.5)

    def _lost(self) -> bool:
        return bool(np.linalg.norm(body_pose(self.env, "Can_main")[0] - self.arm.position) > 0.08)

    def lift(self) -> Goal:
        if self._lost() or self.count >= 40:
            return self.go("hover")
        if body_pose(self.env, "Can_main")[0][2] > 0.98:
            return self.go("carry")
        position = np.array([*self._hold[:2], self.carry_height])
        return Goal(position, self.arm.down(self._yaw), CLOSE)

    def _above_drop(self, height: float, gripper: float, noise: float = 1.0) -> Goal:
        return Goal(self._drop + height * UP, self.arm.down(self._yaw), gripper, noise)

    def carry(self) -> Goal:
        if self._lost():
            return self.go("hover")
        can = body_pose(self.env, "Can_main")[0]
        if np.linalg.norm((can - self._drop)[:2]) < 0.04:
            return self.go("lower")
        return self._above_drop(self.carry_height, CLOSE)

    def lower(self) -> Goal:
        if self.arm.position[2] < 0.95 or self.count >= 25:
            self._hold = self.arm.position
            return self.go("release")
        return self._above_drop(0.93, CLOSE, 0.5)

    def release(self) -> Goal:
        if self.count >= 25:
            return self.go("hover")
        up = 0.0 if self.count < 3 else 0.10
        return Goal(self._hold + up * UP, self.arm.down(self._yaw), OPEN, 0.5)


class SquareExpert(ArmExpert):
    """NutAssemblySquare: grasp the handle, lift, carry and turn, put it onto the peg, release."""

    # headings of the nut over the peg. At 0 the handle would point away from the robot, out of
    # the arm's reach.
    peg_yaws = (np.pi / 2, -np.pi / 2, np.pi)

    def __init__(self, env: Any, seed: Seed, noise: Noise) -> None:
        super().__init__(env, seed, noise)
        self._aside = self.hover_jitter()
        self._start()

    def _start(self) -> None:
        self._bias = np.zeros(3)
        self._hold = self.arm.position
        self._rotation = self.arm.rotation

    def _grasp(self) -> Goal:
        nut, rotation = body_pose(self.env, "SquareNut_main")
        position = site_position(self.env, "SquareNut_handle_site") + 0.006 * rotation[:, 0]
        position[2] = nut[2] + 0.003
        return Goal(position, self.arm.rotation_with(rotation[:, 1]), OPEN)

    def hover(self) -> Goal:
        grasp = self._grasp()
        goal = Goal(grasp.position + 0.08 * UP + self._aside, grasp.rotation, OPEN)
        return self.go("descend") if self.arm.near(goal, 0.02, 0.08) else goal

    def descend(self) -> Goal:
        goal = self._grasp()
        error = goal.position - self.arm.position
        if self.arm.near(goal, 0.004, 0.06) or self.count >= 40:
            self._hold, self._rotation = goal.position + self._bias, goal.rotation
            return self.go("close")
        # the controller stops a few mm before its goal; z is not corrected, because fingers
        # pressed on the table would not close
        if np.linalg.norm(error) < 0.03:
            self._bias[:2] = (self._bias + 0.25 * error)[:2].clip(-0.04, 0.04)
        return Goal(goal.position + self._bias, goal.rotation, OPEN, 0.3)

    def close(self) -> Goal:
        if self.count >= 10:
            return self.go("lift")
        return Goal(self._hold, self._rotation, CLOSE, 0.3)

    def _lost(self) -> bool:
        handle = site_position(self.env, "SquareNut_handle_site")
        return bool(np.linalg.norm(handle - self.arm.position) > 0.05)

    def _again(self) -> Goal:
        self._start()
        return self.go("hover")

    def lift(self) -> Goal:
        nut = body_pose(self.env, "SquareNut_main")[0]
        if self.count > 15 and (self._lost() or self.count > 60):
            return self._again()
        if nut[2] > 1.00:
            return self.go("carry")
        return Goal(np.array([*self._hold[:2], 1.08]), self._rotation, CLOSE)

    def _to_peg(self) -> tuple[np.ndarray, float, np.ndarray]:
        """Vector from the nut to the peg [3] m, heading error (rad), and the hand's rotation."""
        nut, rotation = body_pose(self.env, "SquareNut_main")
        peg = body_pose(self.env, "peg1")[0]
        turns = [wrapped(yaw - yaw_of(rotation)) for yaw in self.peg_yaws]
        turn = min(turns, key=abs)
        yaw = yaw_of(rotation) + turn
        x = np.array([np.cos(yaw), np.sin(yaw), 0.0])
        target = np.column_stack([x, np.cross(UP, x), UP])
        return peg - nut, turn, target @ rotation.T @ self.arm.rotation

    def carry(self) -> Goal:
        if self._lost():
            return self._again()
        way, turn, rotation = self._to_peg()
        if np.linalg.norm(way[:2]) < 0.004 and abs(turn) < 0.05:
            return self.go("insert")
        nut = body_pose(self.env, "SquareNut_main")[0]
        position = self.arm.position + np.array([way[0], way[1], 1.03 - nut[2]])
        noise = 1.0 if np.linalg.norm(way[:2]) > 0.03 else 0.3
        return Goal(position, rotation, CLOSE, noise)

    def insert(self) -> Goal:
        if self._lost():
            return self._again()
        way, _, rotation = self._to_peg()
        nut = body_pose(self.env, "SquareNut_main")[0]
        if nut[2] < 0.865 or self.count >= 60:
            self._hold, self._rotation = self.arm.position, self.arm.rotation
            return self.go("release")
        beside = nut[2] > 0.95 and np.linalg.norm(way[:2]) > 0.008
        position = self.arm.position + np.array([way[0], way[1], 0.0 if beside else -0.05])
        return Goal(position, rotation, CLOSE, 0.3)

    def release(self) -> Goal:
        if self.count >= 30:
            return self._again()
        up = 0.0 if self.count < 4 else 0.10
        return Goal(self._hold + up * UP, self._rotation, OPEN, 0.3)


def yaw_of_axis(axis: np.ndarray) -> float:
    """Heading of an axis in the horizontal plane, rad."""
    return float(np.arctan2(axis[1], axis[0]))
