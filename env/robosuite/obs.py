"""Observations of a robosuite simulation under robomimic's names, as robosuite 1.4 gave them.

They are read from the simulator, not from robosuite 1.5's own observation dict, which differs
from the data that policies are trained on. There ``object`` has another order in PickPlaceCan,
NutAssemblySquare, TwoArmTransport and ToolHang, and another sign in Lift. Object poses relative to
the hand lag one control step (and are zero after a reset).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from common_utils.robomimic_keys import PROP_KEYS, STATE_KEYS

ARM = "right"  # robosuite's name for the only arm of a Panda
PROP_DIM = 9

ObjectReader = Callable[[Any, np.ndarray, np.ndarray], list[np.ndarray]]


def _xyzw(quat: np.ndarray) -> np.ndarray:
    """MuJoCo's wxyz as robosuite's xyzw."""
    return quat[[1, 2, 3, 0]]


def robot_obs(env: Any, number: int) -> dict[str, np.ndarray]:
    """Hand position [3] (grip site), quaternion xyzw [4] (hand body), fingers [2] of one robot."""
    robot, data = env.robots[number], env.sim.data._data
    body = env.sim.model.body_name2id(robot.robot_model.eef_name[ARM])
    return {
        f"robot{number}_eef_pos": data.site_xpos[robot.eef_site_id[ARM]].copy(),
        f"robot{number}_eef_quat": _xyzw(data.xquat[body]),
        f"robot{number}_gripper_qpos": data.qpos[robot._ref_gripper_joint_pos_indexes[ARM]],
    }


def _with_relative(
    pos: np.ndarray, quat: np.ndarray, eef_pos: np.ndarray, eef_quat: np.ndarray
) -> list[np.ndarray]:
    """Position, quaternion, and the same two in the hand's frame."""
    import robosuite.utils.transform_utils as T

    world_in_hand = T.pose_inv(T.pose2mat((eef_pos, eef_quat)))
    relative = T.pose_in_A_to_pose_in_B(T.pose2mat((pos, quat)), world_in_hand)
    return [pos, quat, *T.mat2pose(relative)]


def _lift(env: Any, eef_pos: np.ndarray, eef_quat: np.ndarray) -> list[np.ndarray]:
    data = env.sim.data._data
    pos = data.xpos[env.cube_body_id]
    return [pos, _xyzw(data.xquat[env.cube_body_id]), eef_pos - pos]


def _body(name: str) -> ObjectReader:
    def read(env: Any, eef_pos: np.ndarray, eef_quat: np.ndarray) -> list[np.ndarray]:
        data, body = env.sim.data._data, env.obj_body_id[name]
        return _with_relative(data.xpos[body], _xyzw(data.xquat[body]), eef_pos, eef_quat)

    return read


def _bodies(*names: str) -> ObjectReader:
    readers = [_body(name) for name in names]

    def read(env: Any, eef_pos: np.ndarray, eef_quat: np.ndarray) -> list[np.ndarray]:
        return [part for one in readers for part in one(env, eef_pos, eef_quat)]

    return read


def _transport(env: Any, eef_pos: np.ndarray, eef_quat: np.ndarray) -> list[np.ndarray]:
    group, other = env.transport, robot_obs(env, 1)["robot1_eef_pos"]
    payload, trash, lid = group.payload_pos, group.trash_pos, group.lid_handle_pos
    return [
        *(payload, group.payload_quat, trash, group.trash_quat, lid, group.lid_handle_quat),
        *(group.target_bin_pos, group.trash_bin_pos),
        *(payload - eef_pos, lid - eef_pos, payload - other, trash - other),
        np.array([group.payload_in_target_bin, group.trash_in_trash_bin], np.float64),
    ]


def _tool_hang(env: Any, eef_pos: np.ndarray, eef_quat: np.ndarray) -> list[np.ndarray]:
    import robosuite.utils.transform_utils as T

    data = env.sim.data._data
    geom, site = env.obj_geom_id["stand_base"], env.obj_site_id["frame_intersection_site"]
    tool = env.obj_body_id["tool"]
    parts: list[np.ndarray] = []
    for pos, rotation in (
        (data.geom_xpos[geom], data.geom_xmat[geom]),
        (data.site_xpos[site], data.site_xmat[site]),
        (data.xpos[tool], data.xmat[tool]),
    ):
        parts += _with_relative(pos, T.mat2quat(rotation.reshape(3, 3)), eef_pos, eef_quat)
    done = [env._check_frame_assembled(), env._check_tool_on_frame()]
    return [*parts, np.array(done, np.float64)]


_OBJECTS: dict[str, ObjectReader] = {
    "Lift": _lift,
    "PickPlaceCan": _body("Can"),
    "NutAssemblySquare": _body("SquareNut"),
    "TwoArmTransport": _transport,
    "ToolHang": _tool_hang,
    "PickPlace": _bodies("Milk", "Bread", "Cereal", "Can"),
    "NutAssembly": _bodies("SquareNut", "RoundNut"),
}


def observe(env: Any) -> dict[str, np.ndarray]:
    """``robot0_eef_pos`` [3], ``robot0_eef_quat`` [4], ``robot0_gripper_qpos`` [2] (and the same
    for robot1 if there is one) and ``object``, float64, of the current state.

    After a control step the poses are those of its second-to-last physics step, as in robosuite.
    """
    task = type(env).__name__
    obs: dict[str, np.ndarray] = {}
    for number in range(len(env.robots)):
        obs |= robot_obs(env, number)
    parts = _OBJECTS[task](env, obs["robot0_eef_pos"], obs["robot0_eef_quat"])
    obs["object"] = np.concatenate(parts)
    return obs


def prop_vector(obs: dict[str, np.ndarray]) -> np.ndarray:
    """float32 [9]: hand position and quaternion, fingers (robot0's)."""
    return np.concatenate([obs[k] for k in PROP_KEYS]).astype(np.float32)


def state_vector(task: str, obs: dict[str, np.ndarray]) -> np.ndarray:
    """float32 [STATE_DIMS[task]], in the order of STATE_KEYS."""
    return np.concatenate([obs[k] for k in STATE_KEYS[task]]).astype(np.float32)
