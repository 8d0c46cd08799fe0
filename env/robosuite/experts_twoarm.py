"""Scripted expert of TwoArmTransport: one script for each arm; they wait for each other.

Robot 0 (at y -0.81) puts the lid aside, takes the hammer out of its bin and offers it between
the robots. Robot 1 (at y +0.81) throws the trash into its bin, takes the hammer over and puts
it into the bin that the trash was in. The waypoints were found by measurement in robosuite 1.5.2.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from scipy.spatial.transform import Rotation

from env.robosuite.control import (
    CLOSE,
    FINE,
    OPEN,
    UP,
    Goal,
    Noise,
    Seed,
    TaskExpert,
    WaypointExpert,
    body_pose,
    wrapped,
    yaw_of,
)

# where each robot grasps the hammer's handle: metres from its middle towards robot 1. Half the
# handle is 10 cm. The hands must not meet, and robot 0 must not reach too close to its base.
GRASP = (-0.06, 0.08)


class TransportArm(WaypointExpert):
    """The shared part of both scripts: the hammer."""

    def __init__(self, env: Any, seed: Seed, noise: Noise, arm: int) -> None:
        super().__init__(env, seed, noise, arm)
        self._number = arm

    def hammer(self) -> tuple[np.ndarray, np.ndarray]:
        """Middle of the hammer's handle [3] m, and the handle's direction towards robot 1 [3]."""
        position, rotation = body_pose(self.env, self.env.transport.payload.root_body)
        axis = rotation[:, 2]
        return position, axis if axis[1] > 0 else -axis

    def hammer_grasp(self) -> Goal:
        """Goal of the hand around this robot's end of the handle, with open fingers."""
        middle, axis = self.hammer()
        across = np.array([-axis[1], axis[0], 0.0])
        position = middle + GRASP[self._number] * axis
        return Goal(position, self.arm.rotation_with(across), OPEN, FINE)

    def holds_hammer(self) -> bool:
        """Whether the hammer's handle (10 cm long on each side) is between the fingers."""
        middle, axis = self.hammer()
        way = self.arm.position - middle
        along = float(way @ axis)
        return abs(along) < 0.12 and bool(np.linalg.norm(way - along * axis) < 0.03)


class StartArm(TransportArm):
    """Robot 0: put the lid aside, take the hammer out of the bin and to the other robot."""

    first = "over_lid"
    lid_place = np.array([-0.17, -0.45, 0.845])
    offer_place = np.array([0.0, -0.02, 1.06])  # of the middle of the handle: both reach it
    retreat_place = np.array([0.05, -0.25, 1.2])
    taker: TargetArm

    def _lid(self, up: float, noise: float = 1.0) -> Goal:
        rotation = self.arm.rotation_with(np.array([1.0, 0.0, 0.0]))
        return Goal(self.env.transport.lid_handle_pos + up * UP, rotation, OPEN, noise)

    def over_lid(self) -> Goal:
        goal = self._lid(0.08)
        goal = replace(goal, position=goal.position + self.aside)
        return self.until(goal, "to_lid", 0.025, 0.15)

    def to_lid(self) -> Goal:
        return self.around(self._lid(0.0, FINE), "grasp_lid")

    def grasp_lid(self) -> Goal:
        return self.still(CLOSE, 12, "lift_lid")

    def _lid_lost(self) -> bool:
        return self.arm.errors(self._lid(0.0))[0] > 0.05

    def lift_lid(self) -> Goal:
        if self._lid_lost():
            return self.go("over_lid")
        goal = replace(self.at, position=self.at.position + 0.10 * UP, gripper=CLOSE)
        return self.until(goal, "carry_lid", 0.03, limit=40)

    def carry_lid(self) -> Goal:
        if self._lid_lost():
            return self.go("over_lid")
        position = np.array([*self.lid_place[:2], self.at.position[2]])
        goal = replace(self.at, position=position, gripper=CLOSE, noise=1.0)
        return self.until(goal, "lower_lid", 0.03)

    def lower_lid(self) -> Goal:
        goal = replace(self.at, position=self.lid_place, gripper=CLOSE)
        return self.until(goal, "release_lid", 0.01, limit=40)

    def release_lid(self) -> Goal:
        return self.still(OPEN, 6, "leave_lid")

    def leave_lid(self) -> Goal:
        position = np.array([*self.at.position[:2], 1.05])
        return self.until(replace(self.at, position=position), "over_hammer", 0.03)

    def over_hammer(self) -> Goal:
        grasp = self.hammer_grasp()
        position = grasp.position + 0.22 * UP + self.aside
        return self.until(Goal(position, grasp.rotation, OPEN), "to_hammer", 0.025, 0.15)

    def to_hammer(self) -> Goal:
        grasp = self.hammer_grasp()
        goal = replace(grasp, position=grasp.position + 0.004 * UP)
        return self.around(goal, "grasp_hammer", limit=90)

    def grasp_hammer(self) -> Goal:
        return self.still(CLOSE, 12, "lift_hammer")

    def lift_hammer(self) -> Goal:
        if not self.holds_hammer():
            return self.go("over_hammer")
        # away from the bin's wall, so that the end behind the hand does not catch on it
        position = self.at.position + np.array([0.0, 0.03, 0.22])
        goal = replace(self.at, position=position, gripper=CLOSE)
        return self.until(goal, "bring", 0.03, limit=60)

    def _offer(self, noise: float) -> Goal:
        # the handle is level and along y, even if it has slipped between the fingers
        middle, axis = self.hammer()
        level, _ = Rotation.align_vectors(np.array([[0.0, 1.0, 0.0]]), axis[None])
        position = self.arm.position + self.offer_place - middle
        return Goal(position, level.as_matrix() @ self.arm.rotation, CLOSE, noise)

    def bring(self) -> Goal:
        if not self.holds_hammer():
            return self.go("over_hammer")
        return self.until(self._offer(1.0), "offer", 0.02, 0.1, limit=80)

    def offer(self) -> Goal:
        """Wait until the other robot holds the hammer."""
        if self.taker.phase == "hold":
            return self.go("hand_over")
        if not self.holds_hammer():
            return self.go("over_hammer")
        return replace(self.at, gripper=CLOSE)

    def hand_over(self) -> Goal:
        if self.count == 4:  # along the handle, away from the head, which may be behind the hand
            self.at = replace(self.at, position=self.at.position + [0.0, 0.025, 0.0])
        return self.still(OPEN, 12, "retreat")

    def retreat(self) -> Goal:
        # straight up first: the handle is between the fingers
        up = self.at.position + 0.14 * UP
        return Goal(up if not self.away() else self.retreat_place, self.at.rotation, OPEN)

    def away(self) -> bool:
        """Whether the fingers have let go of the hammer after handing it over."""
        return self.phase == "retreat" and self.count >= 8


class TargetArm(TransportArm):
    """Robot 1: put the trash into its bin, then the other robot's hammer into the free bin."""

    first = "over_trash"
    wait_place = np.array([0.0, 0.16, 1.20])
    giver: StartArm

    def _trash(self, up: float, noise: float = 1.0) -> Goal:
        position, rotation = body_pose(self.env, self.env.transport.trash.root_body)
        present = self.arm.opening_axis
        heading = np.arctan2(present[1], present[0])
        yaw = heading + wrapped(yaw_of(rotation) - heading, np.pi / 2)
        return Goal(position + up * UP, self.arm.down(yaw), OPEN, noise)

    def over_trash(self) -> Goal:
        goal = self._trash(0.12)
        goal = replace(goal, position=goal.position + self.aside)
        return self.until(goal, "to_trash", 0.025, 0.15)

    def to_trash(self) -> Goal:
        return self.around(self._trash(-0.003, FINE), "grasp_trash")

    def grasp_trash(self) -> Goal:
        return self.still(CLOSE, 12, "lift_trash")

    def _trash_lost(self) -> bool:
        return self.arm.errors(self._trash(0.0))[0] > 0.05

    def lift_trash(self) -> Goal:
        if self._trash_lost():
            return self.go("over_trash")
        goal = replace(self.at, position=self.at.position + 0.20 * UP, gripper=CLOSE)
        return self.until(goal, "carry_trash", 0.03, limit=60)

    def carry_trash(self) -> Goal:
        if self._trash_lost():
            return self.go("over_trash")
        place = self.env.transport.trash_bin_pos
        position = np.array([*place[:2], self.at.position[2]])
        goal = replace(self.at, position=position, gripper=CLOSE, noise=1.0)
        return self.until(goal, "lower_trash", 0.03)

    def lower_trash(self) -> Goal:
        position = np.array([*self.at.position[:2], 0.93])
        goal = replace(self.at, position=position, gripper=CLOSE)
        return self.until(goal, "release_trash", 0.02, limit=40)

    def release_trash(self) -> Goal:
        return self.still(OPEN, 8, "leave_trash")

    def leave_trash(self) -> Goal:
        position = np.array([*self.at.position[:2], 1.12])
        return self.until(replace(self.at, position=position), "wait", 0.03)

    def wait(self) -> Goal:
        """Stay out of the way until the hammer is offered."""
        if self.giver.phase == "offer":
            return self.go("approach")
        across = self.arm.rotation_with(np.array([1.0, 0.0, 0.0]))
        return Goal(self.wait_place, across, OPEN)

    def _offered(self) -> bool:
        return self.giver.phase == "offer"

    def approach(self) -> Goal:
        if not self._offered():
            return self.go("wait")
        grasp = self.hammer_grasp()
        goal = Goal(grasp.position + 0.10 * UP, grasp.rotation, OPEN, 0.5)
        return self.until(goal, "to_offer", 0.02, 0.1, limit=60)

    def to_offer(self) -> Goal:
        if not self._offered():
            return self.go("wait")
        return self.around(self.hammer_grasp(), "grasp")

    def grasp(self) -> Goal:
        return self.still(CLOSE, 14, "hold")

    def hold(self) -> Goal:
        """Hold still until the other hand has opened."""
        if self.giver.away():
            return self.go("lift") if self.holds_hammer() else self.go("wait")
        return replace(self.at, gripper=CLOSE)

    def lift(self) -> Goal:
        if not self.holds_hammer():
            return self.go("wait")
        position = self.at.position + np.array([0.0, 0.03, 0.08])
        return self.until(replace(self.at, position=position, gripper=CLOSE), "carry", 0.02)

    def _to_bin(self) -> np.ndarray:
        """Horizontal vector from the hammer's middle to the target bin's middle, [3] m."""
        way: np.ndarray = self.env.transport.target_bin_pos - self.hammer()[0]
        return way * [1.0, 1.0, 0.0]

    def carry(self) -> Goal:
        if not self.holds_hammer():
            return self.go("wait")
        position = self.arm.position + self._to_bin()
        position[2] = 1.16
        goal = replace(self.at, position=position, gripper=CLOSE, noise=1.0)
        return self.until(goal, "lower", 0.03, limit=150)

    def lower(self) -> Goal:
        position = np.array([*self.at.position[:2], 0.93])
        goal = replace(self.at, position=position, gripper=CLOSE)
        return self.until(goal, "release", 0.02, limit=60)

    def release(self) -> Goal:
        up = 0.0 if self.count < 8 else 0.15
        return replace(self.at, position=self.at.position + up * UP, gripper=OPEN)


class TransportExpert(TaskExpert):
    """TwoArmTransport: both arms at once; actions float32 [14], robot 0 first."""

    def __init__(self, env: Any, seed: Seed, noise: Noise) -> None:
        super().__init__(env, seed, noise)
        one, two = (int(s) for s in self.rng.integers(2**31, size=2))
        self.start, self.target = StartArm(env, one, noise, 0), TargetArm(env, two, noise, 1)
        self.start.taker, self.target.giver = self.target, self.start

    @property
    def phase(self) -> str:
        """The phases of the two arms, as "robot 0's phase/robot 1's phase"."""
        return f"{self.start.phase}/{self.target.phase}"

    def act(self) -> np.ndarray:
        return np.concatenate([self.start.act(), self.target.act()])
