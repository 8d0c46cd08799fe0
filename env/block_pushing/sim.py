"""The simulated table: robot, tool, blocks and target zones in pybullet.

The order of bodies in Bullet, the order of the calls and the settling steps decide the last bits
of an episode. They are as published, so that episodes equal the recorded ones. Distances are in
metres, angles in radians.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np

from common_utils.native_output import silenced
from env.core import EnvError

ASSETS = Path(__file__).parent / "assets"

CONTROL_HZ = 10.0
STEPS_PER_ACTION = 24  # of 1/240 s
SETTLE_STEPS = 100
EFFECTOR_HEIGHT = 0.06
START_XY = (0.3, -0.4)
# limits of the effector's target
WORKSPACE_LOW, WORKSPACE_HIGH = np.array([0.15, -0.5]), np.array([0.7, 0.5])
WORKSPACE_CENTRE_X = 0.4
TARGET_HEIGHT = 0.02
# key of a server's shared memory: pybullet's default
SERVER_KEY = 12347
SHARED_MEMORY_TABLE = Path("/proc/sysvipc/shm")  # Linux lists who is attached

_INITIAL_JOINTS = (
    -0.9254632489674508,
    0.6990770671568564,
    -1.106629064060494,
    0.0006653351931553931,
    0.3987969742311386,
    -4.063402065624296,
)
_EFFECTOR_LINK = 6
_POINTING_DOWN = (0.0, 1.0, 0.0, math.cos(math.pi / 2))  # half a turn about y
_JOINT_FORCE = 1200.0
_TOOL_FORCE = 50.0

INSTALL = (
    "suite block_pushing needs pybullet (pip install pybullet==3.2.7); it has no wheels for "
    "Python 3.12 or newer: use Python 3.10 or 3.11, or build it with a C++ compiler installed"
)


def import_pybullet() -> Any:
    """The module; without it an EnvError that says how to install it."""
    try:
        with silenced():
            import pybullet
            import pybullet_data  # noqa: F401  the robot and the floor
    except ImportError as error:
        raise EnvError(f"{INSTALL} ({error})") from error
    return pybullet


class BlockPushSim:
    """One physics client with ``blocks`` and ``targets`` (names of URDF files).

    Args:
        blocks: movable bodies.
        targets: fixed zones (or the pen of the insertion task).
        shared_memory: connect to a running pybullet server (a viewer) instead of DIRECT.
    """

    def __init__(
        self, blocks: Sequence[str], targets: Sequence[str], *, shared_memory: bool = False
    ) -> None:
        self.bullet = import_pybullet()
        self.client = self._connect(shared_memory)
        self._kw = {"physicsClientId": self.client}
        self._bodies = (tuple(blocks), tuple(targets))
        self._load()
        self.effector_target = np.array(START_XY)
        self.target_poses: list[tuple[float, float, float]] = [(0.0, 0.0, 0.0)] * len(targets)

    @staticmethod
    def _quiet() -> AbstractContextManager[None]:
        return silenced()

    def _connect(self, shared_memory: bool) -> int:
        p = self.bullet
        if shared_memory:
            _check_not_left_behind(SERVER_KEY)
            client = p.connect(p.SHARED_MEMORY, key=SERVER_KEY)
        else:
            client = p.connect(p.DIRECT)
        if client < 0:
            raise EnvError(
                "shared_memory: no pybullet server answers; start one where there is a display: "
                "python -m pybullet_utils.runServer"
            )
        return int(client)

    def _load(self) -> None:
        with self._quiet():
            self._load_bodies(*self._bodies)

    def _load_bodies(self, blocks: Sequence[str], targets: Sequence[str]) -> None:
        import pybullet_data

        p, kw, data = self.bullet, self._kw, Path(pybullet_data.getDataPath())
        p.resetSimulation(**kw)
        p.setGravity(0, 0, -9.8, **kw)
        p.loadURDF(str(data / "plane.urdf"), basePosition=[0, 0, -0.001], **kw)
        p.loadURDF(str(ASSETS / "workspace.urdf"), basePosition=[0.35, 0, 0], **kw)
        robot = str(data / "xarm" / "xarm6_robot.urdf")
        self.robot = p.loadURDF(robot, basePosition=[0, 0, 0], useFixedBase=True, **kw)
        joints = range(p.getNumJoints(self.robot, **kw))
        self._joints = [
            j for j in joints if p.getJointInfo(self.robot, j, **kw)[2] == p.JOINT_REVOLUTE
        ]
        for joint, angle in zip(self._joints, _INITIAL_JOINTS, strict=True):
            p.changeDynamics(self.robot, joint, linearDamping=0, angularDamping=0, **kw)
            p.resetJointState(self.robot, joint, angle, **kw)
        self._attach_tool()
        self.targets = [self._body(name, True) for name in targets]
        self.blocks = [self._body(name, False) for name in blocks]
        self._run(SETTLE_STEPS)
        self._saved = p.saveState(**kw)

    def _body(self, name: str, fixed: bool) -> int:
        path = str(ASSETS / f"{name}.urdf")
        return int(self.bullet.loadURDF(path, useFixedBase=fixed, **self._kw))

    def _attach_tool(self) -> None:
        p, kw = self.bullet, self._kw
        position, orientation = p.getLinkState(
            self.robot, _EFFECTOR_LINK, computeForwardKinematics=True, **kw
        )[:2]
        self.tool = p.loadURDF(str(ASSETS / "tool.urdf"), position, orientation, **kw)
        axes = ([0, 0, 0], [0, 0, 0], [0, 0, 0])
        bodies = (self.robot, _EFFECTOR_LINK, self.tool, -1)
        constraint = p.createConstraint(*bodies, p.JOINT_FIXED, *axes, **kw)
        p.changeConstraint(constraint, maxForce=_TOOL_FORCE, **kw)

    # ------------------------------------------------------------------- motion

    def _run(self, steps: int) -> None:
        step, client = self.bullet.stepSimulation, self.client
        for _ in range(steps):
            step(physicsClientId=client)

    def _drive_to(self, xy: np.ndarray) -> None:
        """Set joint targets that bring the effector over ``xy``, pointing down."""
        p, kw = self.bullet, self._kw
        angles = [state[0] for state in p.getJointStates(self.robot, self._joints, **kw)]
        solution = p.calculateInverseKinematics(
            self.robot,
            _EFFECTOR_LINK,
            (xy[0], xy[1], EFFECTOR_HEIGHT),
            _POINTING_DOWN,
            lowerLimits=[-17.0] * 6,
            upperLimits=[17.0] * 6,
            jointRanges=[17.0] * 6,
            restPoses=[0.0, 0.0, *angles[2:]],
            maxNumIterations=100,
            residualThreshold=1e-10,
            **kw,
        )
        p.setJointMotorControlArray(
            self.robot,
            self._joints,
            p.POSITION_CONTROL,
            targetPositions=solution,
            forces=[_JOINT_FORCE] * 6,
            **kw,
        )

    def restart(self) -> None:
        """Restore everything as it was after loading, and send the effector to its start."""
        if len(self.blocks) > 1:
            # two blocks touch each other at the place where they are loaded, and a restored
            # contact still depends on what was played before
            self._load()
        self.bullet.restoreState(self._saved, **self._kw)
        self.effector_target = np.array(START_XY)
        self._drive_to(self.effector_target)

    def settle(self) -> None:
        """Let the blocks come to rest; they were placed half inside the floor."""
        self._run(SETTLE_STEPS)

    def move(self, delta: np.ndarray) -> None:
        """One control step (0.1 s): shift the effector's target by ``delta`` [2], within limits."""
        target = self.effector_target + delta
        self.effector_target = np.minimum(np.maximum(target, WORKSPACE_LOW), WORKSPACE_HIGH)
        self._drive_to(self.effector_target)
        self._run(STEPS_PER_ACTION)

    # -------------------------------------------------------------------- poses

    def place_block(self, number: int, x: float, y: float, yaw: float) -> None:
        """Put a block down at z = 0, at rest."""
        self._place(self.blocks[number], (x, y, 0.0), yaw)

    def place_target(self, number: int, x: float, y: float, yaw: float) -> None:
        """Move a target zone; it never moves by itself."""
        self._place(self.targets[number], (x, y, TARGET_HEIGHT), yaw)
        self.target_poses[number] = (x, y, wrap(yaw))

    def _place(self, body: int, position: tuple[float, float, float], yaw: float) -> None:
        orientation = (0.0, 0.0, math.sin(yaw / 2), math.cos(yaw / 2))
        self.bullet.resetBasePositionAndOrientation(body, position, orientation, **self._kw)

    def block_pose(self, number: int) -> tuple[float, float, float]:
        """(x, y, yaw) of a block; yaw of the xyz Euler angles, in (-pi, pi]."""
        position, (x, y, z, w) = self.bullet.getBasePositionAndOrientation(
            self.blocks[number], **self._kw
        )
        yaw = math.atan2(2 * (w * z + x * y), 1 - 2 * (y * y + z * z))
        return position[0], position[1], yaw

    def effector_xy(self) -> tuple[float, float]:
        """Position of the effector: the centre of mass of the robot's last link."""
        x, y, _ = self.bullet.getLinkState(self.robot, _EFFECTOR_LINK, **self._kw)[0]
        return x, y

    def close(self) -> None:
        """Disconnect; safe to call twice."""
        if self.client >= 0:
            self.bullet.disconnect(**self._kw)
            self.client = -1


def _check_not_left_behind(key: int) -> None:
    """EnvError if a killed server left its memory behind: pybullet would wait for it forever."""
    if not SHARED_MEMORY_TABLE.exists():
        return
    for line in SHARED_MEMORY_TABLE.read_text().splitlines()[1:]:
        columns = line.split()  # key, id, permissions, size, creator, last user, attached
        if int(columns[0]) == key and columns[6] == "0":
            raise EnvError(
                f"shared_memory: a pybullet server was killed and left its memory behind; remove "
                f"it (ipcrm -m {columns[1]}) and start one: python -m pybullet_utils.runServer"
            )


def wrap(angle: float) -> float:
    """The same angle in (-pi, pi]."""
    return math.atan2(math.sin(angle), math.cos(angle))
