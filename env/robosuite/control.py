"""The shared parts of scripted robosuite experts: reading poses, moving an arm, noise, phases.

An expert reads the simulator, not the observations (which lag in robosuite 1.5). It returns the
same kind of actions as a policy, OSC_POSE commands relative to the current pose. A new one is
made for each episode, after the reset.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Annotated, Any

import numpy as np
from scipy.spatial.transform import Rotation

from common_utils.ranges import Between
from env.robosuite.sim import ARM_ACTION_DIM

OPEN, CLOSE = -1.0, 1.0  # gripper commands; the fingers take 5 to 12 steps to follow

# the step that an action of 1 commands, in metres and radians
POSITION_SCALE = 0.05
ROTATION_SCALE = 0.5

# a number, or the generator itself
Seed = int | np.random.Generator

UP = np.array([0.0, 0.0, 1.0])

FINE = 0.3  # share of the action noise where millimetres matter


ActionNoise = Annotated[float, Between(0, 2)]  # actions go from -1 to 1
Jitter = Annotated[float, Between(0, 0.1)]  # metres


@dataclass(frozen=True)
class Noise:
    """How much demonstrations vary.

    std     standard deviation of Gaussian noise on the position part of actions (in action
            units; half of it on the rotation part, none on the gripper)
    jitter  metres by which waypoints in free space are moved at random, once per episode
    """

    std: ActionNoise = 0.0
    jitter: Jitter = 0.0

    @classmethod
    def of(cls, std: float) -> Noise:
        """The jitter that goes with ``std``: 15 mm at 0.1, 30 mm from 0.2 on."""
        return cls(std, min(0.15 * std, 0.03))


@dataclass(frozen=True)
class Goal:
    """The goal of an arm: position [3] m, rotation [3, 3] of the grip site, gripper command.

    ``noise`` scales the action noise (1 in free motion, less where millimetres matter).
    """

    position: np.ndarray
    rotation: np.ndarray
    gripper: float
    noise: float = 1.0


class Arm:
    """One robot arm of a robosuite environment, read from the simulator.

    Poses are those of the grip site, which the controller also controls.
    """

    def __init__(self, env: Any, number: int = 0) -> None:
        robot = env.robots[number]
        self._env, self._base = env, np.array(robot.base_ori)
        self._site = robot.eef_site_id["right"]
        pads = robot.gripper["right"].important_geoms
        self._fingers = [
            env.sim.model.geom_name2id(pads[name][0])
            for name in ("left_fingerpad", "right_fingerpad")
        ]
        axis = self.rotation.T @ self.opening_axis
        # the pads are a little uneven at rest; the fingers move along one axis of the hand
        self._local_axis = np.eye(3)[np.abs(axis).argmax()] * np.sign(axis[np.abs(axis).argmax()])

    @property
    def position(self) -> np.ndarray:
        """Grip site, world frame, [3] m."""
        return np.array(self._env.sim.data.site_xpos[self._site])

    @property
    def rotation(self) -> np.ndarray:
        """Grip site's axes as columns, world frame, [3, 3]."""
        return np.array(self._env.sim.data.site_xmat[self._site]).reshape(3, 3)

    @property
    def opening_axis(self) -> np.ndarray:
        """World direction in which the fingers open, unit [3]."""
        one, two = (self._env.sim.data.geom_xpos[i] for i in self._fingers)
        return (two - one) / np.linalg.norm(two - one)

    def rotation_with(self, opening: np.ndarray, pointing: np.ndarray = -UP) -> np.ndarray:
        """Rotation [3, 3] whose fingers open along ±``opening`` and whose tool points ``pointing``.

        ``opening`` is made perpendicular to ``pointing``. Both signs grasp in the same way; the
        one nearer to the current rotation is used, so that the wrist turns by at most 90 degrees.
        """
        tool = pointing / np.linalg.norm(pointing)
        opening = opening - tool * (opening @ tool)
        opening = opening / np.linalg.norm(opening)
        present = self.rotation @ self._local_axis
        if opening @ present < 0:
            opening = -opening
        # two corresponding right-handed frames: one of the hand, one of the world
        hand = np.column_stack([self._local_axis, UP, np.cross(self._local_axis, UP)])
        world = np.column_stack([opening, tool, np.cross(opening, tool)])
        return world @ hand.T

    def down(self, yaw: float) -> np.ndarray:
        """Tool down, fingers opening along the horizontal direction ``yaw`` (rad, mod pi)."""
        return self.rotation_with(np.array([np.cos(yaw), np.sin(yaw), 0.0]))

    def errors(self, goal: Goal) -> tuple[float, float]:
        """Distance (m) and angle (rad) to the goal."""
        return (
            float(np.linalg.norm(goal.position - self.position)),
            float(np.linalg.norm(_rotvec(goal.rotation @ self.rotation.T))),
        )

    def near(self, goal: Goal, distance: float, angle: float = np.inf) -> bool:
        """Whether the arm is within ``distance`` (m) and ``angle`` (rad) of the goal."""
        d, a = self.errors(goal)
        return d < distance and a < angle

    def action(self, goal: Goal) -> np.ndarray:
        """The command [7] towards the goal; a longer way is scaled to one step, same direction."""
        move = self._base.T @ (goal.position - self.position) / POSITION_SCALE
        turn = self._base.T @ _rotvec(goal.rotation @ self.rotation.T) / ROTATION_SCALE
        return np.concatenate([_shrunk(move), _shrunk(turn), [goal.gripper]])


def _rotvec(rotation: np.ndarray) -> np.ndarray:
    return Rotation.from_matrix(rotation).as_rotvec()


def _shrunk(vector: np.ndarray) -> np.ndarray:
    return vector / max(1.0, float(np.abs(vector).max()))


def yaw_of(rotation: np.ndarray) -> float:
    """Heading of a body's x axis in the horizontal plane, rad."""
    return float(np.arctan2(rotation[1, 0], rotation[0, 0]))


def wrapped(angle: float, period: float = 2 * np.pi) -> float:
    """``angle`` in [-period/2, period/2)."""
    return float((angle + period / 2) % period - period / 2)


def body_pose(env: Any, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Position [3] m and rotation [3, 3] of a body, world frame."""
    number = env.sim.model.body_name2id(name)
    data = env.sim.data
    return np.array(data.body_xpos[number]), np.array(data.body_xmat[number]).reshape(3, 3)


def site_position(env: Any, name: str) -> np.ndarray:
    """Position [3] m of a site, world frame."""
    return np.array(env.sim.data.site_xpos[env.sim.model.site_name2id(name)])


class TaskExpert(ABC):
    """Plays one episode of a task. It is made after the reset, and ``act`` is called once per step.

    Args:
        env: the robosuite environment (``make_sim``), just reset.
        seed: seed of this episode's noise and jitter, or the generator that draws them.
        noise: amount of noise and jitter.
    """

    def __init__(self, env: Any, seed: Seed, noise: Noise) -> None:
        self.env, self.noise = env, noise
        self.rng = np.random.default_rng(seed)
        # finished parts of the task, as seen in the simulator, in order; for reports
        self.achieved: dict[str, None] = {}

    @property
    @abstractmethod
    def phase(self) -> str:
        """What it is doing, for reports."""

    @abstractmethod
    def act(self) -> np.ndarray:
        """The action for the current state of the simulation, float32 [A] in [-1, 1]."""


class ArmExpert(TaskExpert):
    """One arm that goes through phases; each phase is a method that returns the arm's goal.

    A phase method is called every step. It moves on by ``return self.go("next")``, which calls
    the next phase at once. ``self.count`` is the number of steps spent in the phase. An expert
    for two arms has one of these for each arm and joins their actions.
    """

    first = "hover"

    def __init__(self, env: Any, seed: Seed, noise: Noise, arm: int = 0) -> None:
        super().__init__(env, seed, noise)
        self.arm = Arm(env, arm)
        self._phase, self.count = self.first, 0

    @property
    def phase(self) -> str:
        """Name of the method that returns the arm's goal now."""
        return self._phase

    def go(self, phase: str) -> Goal:
        """Enter ``phase`` and return its first goal."""
        self._phase, self.count = phase, 0
        return self._goal()

    def _goal(self) -> Goal:
        goal: Goal = getattr(self, self.phase)()
        return goal

    def act(self) -> np.ndarray:
        goal = self._goal()
        self.count += 1
        return self.noisy(self.arm.action(goal), goal.noise)

    def noisy(self, action: np.ndarray, scale: float) -> np.ndarray:
        """``action`` [7] with noise, within [-1, 1], float32."""
        std = self.noise.std * scale * np.array([1, 1, 1, 0.5, 0.5, 0.5, 0])
        return (action + std * self.rng.normal(size=ARM_ACTION_DIM)).clip(-1, 1).astype(np.float32)

    def jitter(self, factor: float = 1.0, most: float = np.inf) -> np.ndarray:
        """A random horizontal displacement [3] m of a waypoint."""
        reach = min(factor * self.noise.jitter, most)
        return np.array([*self.rng.uniform(-reach, reach, 2), 0.0])

    def hover_jitter(self) -> np.ndarray:
        """A random displacement [3] m of a waypoint above an object: sideways and up."""
        return self.jitter() + UP * self.rng.uniform(0, self.noise.jitter)


class WaypointExpert(ArmExpert):
    """An arm whose phases end on arrival, or after some steps.

    ``at`` is the last goal of the previous phase.
    """

    def __init__(self, env: Any, seed: Seed, noise: Noise, arm: int = 0) -> None:
        super().__init__(env, seed, noise, arm)
        self.aside = self.hover_jitter()
        self.at = Goal(self.arm.position, self.arm.rotation, OPEN)
        self.bias = np.zeros(3)

    def until(
        self, goal: Goal, then: str, distance: float, angle: float = np.inf, limit: int = 120
    ) -> Goal:
        """``goal``, or phase ``then`` once the arm is near or ``limit`` steps have passed."""
        self.bias = np.zeros(3)
        if self.arm.near(goal, distance, angle) or self.count >= limit:
            self.at = replace(goal, position=self.arm.position, noise=FINE)
            return self.go(then)
        return goal

    def around(self, goal: Goal, then: str, limit: int = 40) -> Goal:
        """``goal`` around an object, or phase ``then`` once the arm has settled there."""
        self.at = goal
        if (self.count >= 4 and self.arm.near(goal, 0.006, 0.1)) or self.count >= limit:
            return self.go(then)
        return self.exact(goal)

    def still(self, gripper: float, steps: int, then: str) -> Goal:
        """Stay at the end of the last phase while the fingers move."""
        if self.count >= steps:
            return self.go(then)
        return self.exact(replace(self.at, gripper=gripper))

    def exact(self, goal: Goal) -> Goal:
        """``goal``, moved sideways by the controller's remaining error (up to 3 cm).

        It is not moved in z, because fingers pressed on the ground would not close.
        """
        error = goal.position - self.arm.position
        if np.linalg.norm(error) < 0.03:
            self.bias[:2] = (self.bias + 0.25 * error)[:2].clip(-0.04, 0.04)
        return replace(goal, position=goal.position + self.bias)
