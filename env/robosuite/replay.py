"""Puts recorded robosuite states, of version 1.5 or older, back into a current simulation.

A recording holds flattened states (time, positions, velocities), in the same order in robosuite
1.4 and 1.5, and often the model's XML. XML of 1.4 does not load in 1.5 (other names and asset
folders), so the simulation keeps its own model and copies what differs between episodes: sizes
and positions (:class:`RecordedScene`).
"""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from typing import Any

import numpy as np

from common_utils.errors import shortened
from env.core import EnvError
from env.robosuite.obs import ARM
from env.robosuite.recorded_model import numbers, recorded_world, shape_of
from env.robosuite.shapes import (
    BODY_FIELDS,
    BVH_FIELDS,
    GEOM_FIELDS,
    compiled,
    copy_shape,
    variable_body,
)

# prefixes of the robots' bodies; robosuite 1.5 changed their names, but not their shapes
ROBOT_PREFIXES = ("robot", "gripper", "mount", "fixed_mount", "base", "fixed_base", "left_eef")
TOLERANCE = 1e-6
# all parts of the model that copying may change
_FIELDS = (
    *("body_pos", "body_quat"),
    *(f"body_{name}" for name in BODY_FIELDS),
    *(f"geom_{name}" for name in GEOM_FIELDS),
    *(f"bvh_{name}" for name in (*BVH_FIELDS, "nodeid")),
)


def restore_state(env: Any, state: np.ndarray, *, live: bool = False) -> None:
    """Put a flattened state float64 [1 + nq + nv] into ``env`` (``make_sim``).

    ``live``: poses as they are right after a control step, which are those of its second-to-last
    physics step. False: poses of the state itself, as right after a reset. Raises EnvError for a
    state of another size, which belongs to another task or robot.
    """
    import mujoco

    model, data = env.sim.model._model, env.sim.data._data
    expected = 1 + model.nq + model.nv
    if state.shape != (expected,):
        raise EnvError(
            f"a state has {state.shape[0]} numbers, expected {expected} for {type(env).__name__} "
            f"(time, {model.nq} positions, {model.nv} velocities)"
        )
    env.sim.set_state_from_flattened(state)
    if not live:
        env.sim.forward()
        return
    # positions are integrated with the new velocities, so this takes back exactly one step
    positions = data.qpos.copy()
    mujoco.mj_integratePos(model, data.qpos, data.qvel, -model.opt.timestep)
    env.sim.forward()
    data.qpos[:] = positions


def restore_step(env: Any, states: np.ndarray, actions: np.ndarray, step: int) -> None:
    """Put an episode's state number ``step`` into ``env`` so that ``actions[step]`` has the same
    effect as in the episode. This also restores the inner state of controllers and grippers,
    which ``states`` do not hold."""
    restore_state(env, states[0])
    offset = 0
    for robot in env.robots:
        # the posture to which the arm's spare degree of freedom is pulled
        joints = env.sim.data.qpos[robot._ref_arm_joint_pos_indexes].copy()
        robot.part_controllers[ARM].update_initial_joints(joints)
        gripper, offset = robot.gripper[ARM], offset + robot.action_dim
        gripper.current_action = np.zeros(gripper.dof)
        for command in actions[:step, offset - 1 : offset]:
            gripper.format_action(command)  # the command changes gradually, over some steps
    restore_state(env, states[step])
    for robot in env.robots:
        robot.composite_controller.update_state()
        robot.part_controllers[ARM].update(force=True)


def hand_rotations(env: Any) -> list[np.ndarray]:
    """Rotation [3, 3] of each robot's hand (grip site) in the world."""
    data = env.sim.data._data
    return [data.site_xmat[r.eef_site_id[ARM]].reshape(3, 3).copy() for r in env.robots]


def poses_asked_for(
    env: Any, action: np.ndarray, goals: list[np.ndarray] | None, *, world_frame: bool
) -> tuple[np.ndarray, list[np.ndarray]]:
    """The absolute action (``make_sim(delta=False)``) that equals the relative one [A] in the
    current state, and the goal rotation [3, 3] of each hand.

    The controller's goal is the hand's current pose, moved by the scaled action. ``world_frame``:
    actions are along the world's axes, as in robosuite 1.4; otherwise along those of each robot's
    base. With ``goals`` (of the previous step), a rotation part of exactly zero keeps the previous
    goal rotation, as in robosuite 1.4.
    """
    out, rotations, offset = [], [], 0
    for number, robot in enumerate(env.robots):
        part = action[offset : offset + robot.action_dim]
        offset += robot.action_dim
        controller = robot.part_controllers[ARM]
        robot.composite_controller.update_state()
        controller.update(force=True)
        frame = np.eye(3) if world_frame else np.asarray(controller.origin_ori)
        step = controller.scale_action(part[:6])
        position = controller.ref_pos + frame @ step[:3]
        rotation = frame @ _rotation(step[3:6]) @ frame.T @ controller.ref_ori_mat
        if goals is not None and not part[3:6].any():
            rotation = goals[number]
        rotations.append(rotation)
        out.append(np.concatenate([position, _rotvec(rotation), part[6:]]))
    return np.concatenate(out), rotations


def _rotation(rotvec: np.ndarray) -> np.ndarray:
    from scipy.spatial.transform import Rotation

    return Rotation.from_rotvec(rotvec).as_matrix()


def _rotvec(rotation: np.ndarray) -> np.ndarray:
    from scipy.spatial.transform import Rotation

    return Rotation.from_matrix(rotation).as_rotvec()


def to_base_frame(env: Any, actions: np.ndarray) -> np.ndarray:
    """Turn relative actions [T, A] from the world's axes (robosuite 1.4) to those of each robot's
    base (1.5). The bases are turned in TwoArmTransport."""
    out, offset = actions.copy(), 0
    for robot in env.robots:
        base = np.asarray(robot.base_ori)
        for start in (offset, offset + 3):
            out[:, start : start + 3] = actions[:, start : start + 3] @ base
        offset += robot.action_dim
    return out


class RecordedScene:
    """Copies sizes and positions of bodies, which differ between episodes, from recorded XML."""

    def __init__(self, env: Any) -> None:
        self._env = env
        self._model = env.sim.model._model
        self._own = {name: getattr(self._model, name).copy() for name in _FIELDS}

    def reset(self) -> None:
        """Restore the simulation's own sizes and positions."""
        import mujoco

        for name, value in self._own.items():
            getattr(self._model, name)[:] = value
        mujoco.mj_setConst(self._model, self._env.sim.data._data)

    def adopt(self, xml: str) -> tuple[list[str], list[str]]:
        """Copy sizes and positions from ``xml``, except those of robots.

        Returns the names of what was changed, and sentences about differences from this version
        that cannot be copied. Raises EnvError if ``xml`` is not a model, or holds more than a
        scene (env/robosuite/recorded_model.py).
        """
        self.reset()
        world = recorded_world(xml)
        taken: list[str] = []
        differences = self._camera_differences(world)
        shaped = variable_body(self._env)
        if shaped and all(body.get("name") != shaped for body in world.iter("body")):
            differences.append(
                f"the recording has no body '{shaped}', whose shape differs between episodes; the "
                "simulation's own shape is kept"
            )
        for body in world.iter("body"):
            name = body.get("name", "")
            if name.startswith(ROBOT_PREFIXES):
                continue
            if not self._knows(body):
                differences.append(f"the recording's body '{name}' is not in this version")
            elif name == shaped:
                self._take_shape(body, taken)
            elif not body.findall("joint") and not body.findall("freejoint"):
                self._take_place(body, taken)
        return taken, differences

    def _knows(self, body: ElementTree.Element) -> bool:
        import mujoco

        kind = mujoco.mjtObj.mjOBJ_BODY
        return bool(mujoco.mj_name2id(self._model, kind, body.get("name", "")) >= 0)

    def _take_shape(self, body: ElementTree.Element, taken: list[str]) -> None:
        name, before = body.get("name", ""), self._model.geom_size.copy()
        shape = shape_of(body)
        try:
            copy_shape(self._env.sim, compiled(shape), name)
        except (ValueError, RuntimeError, KeyError) as error:
            said = shortened(str(error), 200)  # MuJoCo's messages have several lines
            raise EnvError(f"the recorded body '{name}' does not compile: {said}") from error
        if np.abs(self._model.geom_size - before).max() > TOLERANCE:
            taken.append(name)

    def _take_place(self, body: ElementTree.Element, taken: list[str]) -> None:
        """Copy position and rotation of bodies without joints (the state has those of others)."""
        number = self._model.body(body.get("name", "")).id
        pos = numbers(body.get("pos", "0 0 0"), 3)
        # not placed: this XML is from before the reset, which places bodies
        changed = pos.any() and self._put(self._model.body_pos[number], pos)
        if "quat" in body.attrib and pos.any():
            quat = numbers(body.attrib["quat"], 4)
            norm = float(np.linalg.norm(quat))
            changed |= norm > 0 and self._put(self._model.body_quat[number], quat / norm)
        if changed:
            taken.append(body.get("name", ""))

    @staticmethod
    def _put(have: np.ndarray, recorded: np.ndarray) -> bool:
        if np.abs(have - recorded).max() <= TOLERANCE:
            return False
        have[:] = recorded
        return True

    def _camera_differences(self, world: ElementTree.Element) -> list[str]:
        import mujoco

        mj, model, notes = mujoco, self._model, []
        for camera in world.iter("camera"):
            name = camera.get("name", "")
            number = mj.mj_name2id(model, mj.mjtObj.mjOBJ_CAMERA, name)
            if number < 0:
                notes.append(f"camera '{name}' of the recording is not in this version")
                continue
            for key, have in (("pos", model.cam_pos[number]), ("fovy", model.cam_fovy[number])):
                count = np.size(have)
                recorded = numbers(camera.attrib[key], count) if key in camera.attrib else have
                if np.abs(recorded - have).max() > 1e-3:
                    notes.append(
                        f"camera '{name}': {key} {_short(recorded)} in the recording, "
                        f"{_short(np.atleast_1d(have))} here, which is kept"
                    )
        return notes


def _short(values: np.ndarray) -> str:
    return "(" + ", ".join(f"{v:.5g}" for v in values) + ")"
