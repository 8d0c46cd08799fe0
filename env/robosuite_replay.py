"""Recorded robosuite states, of version 1.5 or older, put back into a simulation of today.

A recording holds flattened states (time, positions, velocities), which robosuite 1.4 and 1.5
order alike, and often the model's XML. XML of 1.4 does not load in 1.5 (other names and asset
folders), so the simulation keeps its own model and takes over what differs between episodes:
sizes and places (:class:`RecordedScene`).
"""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from typing import Any

import numpy as np

from env.core import EnvError
from env.robosuite_obs import ARM

# names of what belongs to the robots; theirs were changed in robosuite 1.5, their shapes were not
ROBOT_PREFIXES = ("robot", "gripper", "mount", "fixed_mount", "base", "fixed_base", "left_eef")
TOLERANCE = 1e-6
# attributes by which a body or geom may be turned, or sized, other than by numbers we compare
OTHER_ROTATION = ("euler", "axisangle", "xyaxes", "zaxis", "fromto")


def restore_state(env: Any, state: np.ndarray, *, live: bool = False) -> None:
    """Put a flattened state float64 [1 + nq + nv] into ``env`` (``make_sim``).

    ``live``: poses as they are read right after a control step, which are those of its last
    physics step but one; False: poses of the state itself, as right after a reset. Raises
    EnvError for a state of another size, that is of another task or robot.
    """
    import mujoco

    model, data = env.sim.model._model, env.sim.data._data
    expected = 1 + model.nq + model.nv
    if state.shape != (expected,):
        raise EnvError(
            f"a state of {state.shape[0]} numbers; {type(env).__name__} has {expected} (time, "
            f"{model.nq} positions, {model.nv} velocities)"
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
    """Put an episode's state number ``step`` into ``env`` so that ``actions[step]`` is answered as
    it was: with the controllers' and grippers' inner state too, which ``states`` do not hold."""
    restore_state(env, states[0])
    offset = 0
    for robot in env.robots:
        # the posture that the arm's spare degree of freedom is drawn to
        joints = env.sim.data.qpos[robot._ref_arm_joint_pos_indexes].copy()
        robot.part_controllers[ARM].update_initial_joints(joints)
        gripper, offset = robot.gripper[ARM], offset + robot.action_dim
        gripper.current_action = np.zeros(gripper.dof)
        for command in actions[:step, offset - 1 : offset]:
            gripper.format_action(command)  # the command ramps up over some steps
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
    """The absolute action (``make_sim(delta=False)``) that the relative one [A] means in the
    present state, and the rotation [3, 3] it asks of each hand.

    Stepping the controller: its goal is the hand's present pose, moved by the scaled action.
    ``world_frame``: actions are along the world's axes, as in robosuite 1.4, else along those of
    each robot's base. With ``goals`` (of the step before) a rotation part of exactly zero keeps
    the rotation asked for before, as in robosuite 1.4.
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
    """Relative actions [T, A] along the world's axes (robosuite 1.4) as 1.5 takes them: along
    the axes of each robot's base, which are turned in TwoArmTransport."""
    out, offset = actions.copy(), 0
    for robot in env.robots:
        base = np.asarray(robot.base_ori)
        for start in (offset, offset + 3):
            out[:, start : start + 3] = actions[:, start : start + 3] @ base
        offset += robot.action_dim
    return out


class RecordedScene:
    """Sizes and places of things, which differ between episodes, taken over from recorded XML."""

    def __init__(self, env: Any) -> None:
        self._model = env.sim.model._model
        self._fields = ("body_pos", "body_quat", "geom_pos", "geom_quat", "geom_size")
        self._own = {name: getattr(self._model, name).copy() for name in self._fields}
        self._own["geom_rbound"] = self._model.geom_rbound.copy()

    def reset(self) -> None:
        """The simulation's own sizes and places again."""
        for name, value in self._own.items():
            getattr(self._model, name)[:] = value

    def adopt(self, xml: str) -> list[str]:
        """Take over what ``xml`` says of things other than robots; sentences on what was changed.

        Raises EnvError when ``xml`` is not an XML model.
        """
        self.reset()
        try:
            world = ElementTree.fromstring(xml).find("worldbody")
        except ElementTree.ParseError as error:
            raise EnvError(f"the recorded model is not XML: {error}") from error
        if world is None:
            raise EnvError("the recorded model has no worldbody")
        notes: list[str] = []
        for body in world.iter("body"):
            if not _of_a_robot(body.get("name", "")):
                self._adopt_body(body, notes)
        self._compare_cameras(world, notes)
        return notes

    def _adopt_body(self, body: ElementTree.Element, notes: list[str]) -> None:
        import mujoco

        mj, model = mujoco, self._model
        number = mj.mj_name2id(model, mj.mjtObj.mjOBJ_BODY, body.get("name", ""))
        if number < 0:
            notes.append(f"the recording's body '{body.get('name', '')}' is not in this version")
            return
        if model.body_jntnum[number] == 0:  # what has joints is placed by the state
            self._take("body", number, body, notes, ("pos", "quat"))
        for geom in body.findall("geom"):
            found = mj.mj_name2id(model, mj.mjtObj.mjOBJ_GEOM, geom.get("name", ""))
            if found < 0 or model.geom_type[found] == mj.mjtGeom.mjGEOM_MESH:
                continue
            self._take("geom", found, geom, notes, ("pos", "quat", "size"))

    def _take(
        self,
        kind: str,
        number: int,
        element: ElementTree.Element,
        notes: list[str],
        names: tuple[str, ...],
    ) -> None:
        turned_otherwise = any(k in element.attrib for k in OTHER_ROTATION)
        defaults = {"pos": "0 0 0", "quat": "1 0 0 0"}
        for name in names:
            if turned_otherwise and name != "pos":
                continue
            text = element.get(name, defaults.get(name))
            if text is None:
                continue
            told = np.array([float(x) for x in text.split()])
            if name == "quat":
                told = told / np.linalg.norm(told)
            have = getattr(self._model, f"{kind}_{name}")[number]
            part = have[: len(told)]
            if np.abs(part - told).max() <= TOLERANCE:
                continue
            if kind == "body" and name == "pos" and not told.any():
                continue  # XML of before the reset, which places what has no joints
            notes.append(
                f"{kind} '{element.get('name')}': {name} {_short(told)} taken from the recording, "
                f"here it was {_short(part)}"
            )
            have[: len(told)] = told
            if name == "size":
                self._model.geom_rbound[number] = np.linalg.norm(have)

    def _compare_cameras(self, world: ElementTree.Element, notes: list[str]) -> None:
        import mujoco

        mj, model = mujoco, self._model
        for camera in world.iter("camera"):
            name = camera.get("name", "")
            number = mj.mj_name2id(model, mj.mjtObj.mjOBJ_CAMERA, name)
            if number < 0:
                notes.append(f"camera '{name}' of the recording is not in this version")
                continue
            for key, have in (("pos", model.cam_pos[number]), ("fovy", model.cam_fovy[number])):
                if key not in camera.attrib:
                    continue
                told = np.array([float(x) for x in camera.attrib[key].split()])
                if np.abs(told - have).max() > 1e-3:
                    notes.append(
                        f"camera '{name}': {key} {_short(told)} in the recording, "
                        f"{_short(np.atleast_1d(have))} here (kept)"
                    )


def _of_a_robot(name: str) -> bool:
    return name.startswith(ROBOT_PREFIXES)


def _short(values: np.ndarray) -> str:
    return "(" + ", ".join(f"{v:.5g}" for v in values) + ")"
