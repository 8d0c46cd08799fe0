"""Scripted expert of ToolHang: put the frame upright into its stand, then hang the tool on it.

The frame, an L of a rod and a bar, lies flat on the table. The hand grasps the grip on its rod
from above and turns it upright between the stand and the robot's right; then the hand is level.
The rod goes down into the mount. The bar points away from the robot, and its hook, a knob on top
of the bar, is at the far end. The tool is grasped from above, and its hole is lowered over the
knob. The handle is tilted down about the knob until the far side of the hole is below the bar and
the ring can slide behind the knob. When the hand opens, the tool hangs there. The geometry is in
docs/environments.md.
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
    WaypointExpert,
    body_pose,
    site_position,
)

FRAME, TOOL = "frame_root", "tool_root"
TIP, HOLE = "frame_tip_site", "tool_hole1_center"

# the frame in the stand: its x axis goes from the hook to the rod, its z axis up the rod
FRAME_UPRIGHT = np.column_stack([[-1.0, 0.0, 0.0], [0.0, -1.0, 0.0], UP])
MOUNT_DEPTH = 0.150  # m, of the hole in the stand
KNOB_HEIGHT = 0.012  # m, above the bar
# m: half the thickness of the tool's ring, and the radius of the circle within its eight sides
RING_HALF, RING_RADIUS = 0.0035, 0.0097
TILT = 1.0  # rad, of the handle when the tool is let go
# rad: the hand leans towards the tool's hole, to keep the tilted tool within the arm's reach
LEAN = 0.3


def geom_position(env: Any, name: str) -> np.ndarray:
    """Position [3] m of a geometry, world frame."""
    return np.array(env.sim.data.geom_xpos[env.sim.model.geom_name2id(name)])


class ToolHangExpert(WaypointExpert):
    """ToolHang: grasp, turn, insert and release the frame; grasp, turn, hang, release the tool."""

    first = "over_frame"

    def __init__(self, env: Any, seed: Seed, noise: Noise) -> None:
        super().__init__(env, seed, noise)
        self._steady = 0

    def go(self, phase: str) -> Goal:
        self._steady = 0
        return super().go(phase)

    # held bodies

    def _carried(self, body: str, point: np.ndarray, place: np.ndarray, turned: np.ndarray) -> Goal:
        """The hand's goal that brings ``point`` (world) of the held body to ``place``.

        ``turned`` is the body's desired rotation [3, 3] there.
        """
        turn = turned @ body_pose(self.env, body)[1].T
        position = place + turn @ (self.arm.position - point)
        far = np.linalg.norm(position - self.arm.position) > 0.03
        return Goal(position, turn @ self.arm.rotation, CLOSE, 1.0 if far else FINE)

    def _pressed(self, goal: Goal) -> Goal:
        """``goal``, moved by the controller's remaining error (up to 15 mm).

        Slower than ``exact``, and by at most 1 cm: the held body touches its counterpart.
        """
        error = goal.position - self.arm.position
        if np.linalg.norm(error) < 0.015:
            self.bias = (self.bias + 0.05 * error).clip(-0.01, 0.01)
        return replace(goal, position=goal.position + self.bias)

    def _arrived(self, aside: np.ndarray, goal: Goal) -> bool:
        """Whether the held body has been within 2 mm sideways of its place for 4 steps."""
        there = np.linalg.norm(aside[:2]) < 0.002 and self.arm.errors(goal)[1] < 0.03
        self._steady = self._steady + 1 if there else 0
        return self._steady >= 4

    def _stay(self, then: str) -> Goal:
        self.at = Goal(self.arm.position, self.arm.rotation, CLOSE, FINE)
        self.bias = np.zeros(3)
        return self.go(then)

    def _up_from(self, height: float, then: str) -> Goal:
        goal = replace(self.at, position=self.at.position + height * UP, gripper=CLOSE, noise=1.0)
        return self.until(goal, then, 0.05, limit=50)

    # the frame

    def _grip(self) -> np.ndarray:
        return geom_position(self.env, "frame_grip_frame")

    def _frame_grasp(self) -> Goal:
        across = body_pose(self.env, FRAME)[1][:, 0]
        return Goal(self._grip(), self.arm.rotation_with(across), OPEN, FINE)

    def _frame_lost(self) -> bool:
        return bool(np.linalg.norm(self._grip() - self.arm.position) > 0.05)

    def _tip(self) -> np.ndarray:
        """The tip of the rod, relative to the middle of the mount's upper end, [3] m."""
        walls = [geom_position(self.env, f"stand_wall{i}") for i in range(4)]
        return site_position(self.env, TIP) - np.mean(walls, 0) - MOUNT_DEPTH / 2 * UP

    def _frame_over(self, height: float) -> Goal:
        tip = site_position(self.env, TIP)
        return self._carried(FRAME, tip, tip - self._tip() + height * UP, FRAME_UPRIGHT)

    def over_frame(self) -> Goal:
        grasp = self._frame_grasp()
        goal = replace(grasp, position=grasp.position + 0.10 * UP + self.aside, noise=1.0)
        return self.until(goal, "to_frame", 0.025, 0.1)

    def to_frame(self) -> Goal:
        return self.around(self._frame_grasp(), "grasp_frame")

    def grasp_frame(self) -> Goal:
        return self.still(CLOSE, 12, "lift_frame")

    def lift_frame(self) -> Goal:
        return self._up_from(0.20, "turn_frame")

    def turn_frame(self) -> Goal:
        if self._frame_lost():
            return self.go("over_frame")
        self.achieved["frame grasped"] = None
        place = np.array([-0.08, -0.20, 1.19])  # nothing obstructs the rod here
        goal = self._carried(FRAME, self.arm.position, place, FRAME_UPRIGHT)
        return self.until(goal, "bring_frame", 0.04, 0.1)

    def bring_frame(self) -> Goal:
        if self._frame_lost():
            return self.go("over_frame")
        goal, way = self._frame_over(0.02), self._tip()
        if self._arrived(way, goal):
            return self.go("insert_frame")
        if way[2] < 0.01 and np.linalg.norm(way[:2]) > 0.004:  # beside the mount: go up first
            return replace(goal, position=self.arm.position + 0.04 * UP, noise=FINE)
        return self._pressed(goal)

    def insert_frame(self) -> Goal:
        if self._frame_lost():
            return self.go("over_frame")
        way = self._tip()
        if way[2] < 0.004 - MOUNT_DEPTH:
            return self._stay("release_frame")
        if np.linalg.norm(way[:2]) > 0.008 or self.count >= 100:
            return self.go("bring_frame")
        goal = self._pressed(self._frame_over(way[2]))
        return replace(goal, position=goal.position - 0.03 * UP)

    def release_frame(self) -> Goal:
        return self.still(OPEN, 8, "leave_frame")

    def leave_frame(self) -> Goal:
        # the hand is level, and left of the rod as seen from the robot
        goal = replace(self.at, position=self.at.position + [0.0, 0.12, 0.0], gripper=OPEN)
        return self.until(goal, "rise", 0.03, limit=40)

    def rise(self) -> Goal:
        """Go around the frame and over it, on the way to the tool."""
        if not self.env._check_frame_assembled():
            return self.go("over_frame")
        self.achieved["frame inserted"] = None
        goal = Goal(np.array([0.10, 0.12, 1.25]), self.at.rotation, OPEN)
        return self.until(goal, "over_tool", 0.08)

    # the tool

    def _tool_grasp(self) -> Goal:
        position, rotation = body_pose(self.env, TOOL)
        pointing = rotation[:, 0] * np.sin(LEAN) - UP * np.cos(LEAN)
        return Goal(position, self.arm.rotation_with(rotation[:, 1], pointing), OPEN, FINE)

    def _tool_lost(self) -> bool:
        way = body_pose(self.env, TOOL)[0] - self.arm.position
        return bool(np.linalg.norm(way) > 0.05)

    def _hook(self) -> tuple[np.ndarray, np.ndarray]:
        """Top of the bar under the middle of the knob [3] m; direction to the bar's end [3]."""
        rotation = body_pose(self.env, FRAME)[1]
        knob = geom_position(self.env, "frame_hook_frame")
        return knob - KNOB_HEIGHT / 2 * rotation[:, 2], -rotation[:, 0]

    def _hole(self) -> np.ndarray:
        """The middle of the tool's hole, relative to the hook, [3] m."""
        return site_position(self.env, HOLE) - self._hook()[0]

    def _tool_at(self, out: float, up: float, tilt: float) -> Goal:
        """Goal with the hole ``out`` and ``up`` (m) of the hook, the handle tilted by ``tilt``."""
        hook, outward = self._hook()
        level = np.column_stack([outward, np.cross(UP, outward), UP])
        turned = level @ Rotation.from_euler("y", tilt).as_matrix()
        place = hook + out * outward + up * UP
        return self._carried(TOOL, site_position(self.env, HOLE), place, turned)

    def over_tool(self) -> Goal:
        grasp = self._tool_grasp()
        goal = replace(grasp, position=grasp.position + 0.12 * UP + self.aside, noise=1.0)
        return self.until(goal, "to_tool", 0.025, 0.1)

    def to_tool(self) -> Goal:
        return self.around(self._tool_grasp(), "grasp_tool")

    def grasp_tool(self) -> Goal:
        return self.still(CLOSE, 12, "lift_tool")

    def lift_tool(self) -> Goal:
        return self._up_from(0.30, "turn_tool")

    def turn_tool(self) -> Goal:
        if self._tool_lost():
            return self.go("over_tool")
        self.achieved["tool grasped"] = None
        place = np.array([0.15, -0.10, 1.15])  # nothing obstructs the handle here
        goal = self._carried(TOOL, self.arm.position, place, np.eye(3))
        return self.until(goal, "bring_tool", 0.04, 0.1)

    def bring_tool(self) -> Goal:
        if self._tool_lost():
            return self.go("over_tool")
        goal, way = self._tool_at(0.0, 0.035, 0.0), self._hole()
        if self._arrived(way, goal):
            return self.go("lower_tool")
        if way[2] < 0.02 and np.linalg.norm(way[:2]) > 0.004:  # beside the knob: go up first
            return replace(goal, position=self.arm.position + 0.04 * UP, noise=FINE)
        return self._pressed(goal)

    def lower_tool(self) -> Goal:
        way = self._hole()
        if way[2] < RING_HALF + 0.003:
            return self.go("tilt_tool")
        if np.linalg.norm(way[:2]) > 0.006 or self.count >= 30:
            return self.go("bring_tool")
        return self._pressed(self._tool_at(0.0, max(way[2] - 0.02, RING_HALF), 0.0))

    def tilt_tool(self) -> Goal:
        """The ring's near side is on the bar; at 0.74 rad its far side has passed under the bar."""
        if self.count >= 46:
            return self._stay("release_tool")
        tilt = min(0.025 * self.count, TILT)
        up = RING_HALF * np.cos(tilt) - RING_RADIUS * np.sin(tilt) + 0.0005
        behind = 0.0065 * np.clip((tilt - 0.74) / 0.2, 0, 1)
        return self._pressed(self._tool_at(-0.0005 - behind, up, tilt))

    def release_tool(self) -> Goal:
        return self.still(OPEN, 10, "leave_tool")

    def leave_tool(self) -> Goal:
        if self.count >= 30 and body_pose(self.env, TOOL)[0][2] < 0.87:  # it fell
            return self.go("over_tool")
        return replace(self.at, position=self.at.position + 0.1 * UP, gripper=OPEN)
