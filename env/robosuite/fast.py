"""robosuite's control step without Python in its inner loop (csrc/osc.cc).

A step of 50 ms is 25 physics steps. Before each of them robosuite computes the torques of every
arm in Python, which takes most of the time of a step. Here robosuite's own controllers set the
goals, also once per step, and the loop runs in C++. Torques agree with robosuite's except for
rounding (tests/env/test_robosuite_fast.py). The records of robosuite's own statistics (recent
forces, velocities, accelerations) are left out, and its observables are not updated.
"""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path
from typing import Any

import numpy as np

ARM = "right"
FUNCTIONS = ("mj_step1", "mj_step2", "mj_jacSite", "mj_fullM")
ARRAYS = ("qpos", "qvel", "qM", "qfrc_bias", "site_xpos", "site_xmat", "ctrl")


@functools.lru_cache
def _functions() -> dict[str, int]:
    """Addresses of MuJoCo's functions in the library that Python's mujoco has loaded."""
    import mujoco

    for path in sorted(Path(mujoco.__file__).parent.glob("libmujoco*")):
        library = ctypes.CDLL(str(path))
        addresses = {
            name: ctypes.cast(getattr(library, name), ctypes.c_void_p).value or 0
            for name in FUNCTIONS
        }
        if all(addresses.values()):
            return addresses
    raise OSError(f"no libmujoco next to {mujoco.__file__}")


class FastLoop:
    """The control loop of one simulation (of its current model and data)."""

    def __init__(self, env: Any) -> None:
        from common_utils import osc

        self.sim = env.sim
        model, data = self.sim.model._model, self.sim.data._data
        # views into MuJoCo's memory; addresses do not change while the data exists
        views = {name: getattr(data, name) for name in ARRAYS}
        for name, view in views.items():
            if view.dtype != np.float64 or not view.flags.c_contiguous:
                raise TypeError(f"MuJoCo's {name} is not a contiguous float64 array")
        arrays = {name: view.ctypes.data for name, view in views.items()}
        self._loop = osc.Loop(_functions(), model._address, data._address, model.nv, arrays)
        for robot in env.robots:
            self._add_arm(robot)

    def _add_arm(self, robot: Any) -> None:
        model, controller = self.sim.model, robot.part_controllers[ARM]
        base = f"{controller.naming_prefix}{controller.part_name}_center"
        ctrl = np.array(robot._ref_actuators_indexes_dict[ARM], np.int64)
        limits = np.asarray(model.actuator_ctrlrange[ctrl], np.float64)
        self._loop.add_arm(
            model.site_name2id(controller.ref_name),
            model.site_name2id(base),
            controller.input_ref_frame == "base",
            np.array(controller.qpos_index, np.int64),
            np.array(controller.qvel_index, np.int64),
            ctrl,
            limits[:, 0].copy(),
            limits[:, 1].copy(),
        )

    def step(self, env: Any, action: np.ndarray, steps: int) -> None:
        """``steps`` physics steps towards the goal of ``action`` [A]."""
        self.sim.step1()
        # After a reset robosuite's controllers compute the first torques from the state in which
        # they were made, before fingers and objects were placed.
        first = not all(r.part_controllers[ARM].new_update for r in env.robots)
        if first:
            env._pre_action(action, True)
            self.sim.step2()
        begin = 0
        for number, robot in enumerate(env.robots):
            end = begin + robot.action_dim
            if not first:
                self._set_goal(robot, action[begin:end])
            self._tell_goal(number, robot.part_controllers[ARM])
            begin = end
        self._loop.run(steps - first, not first)

    def _set_goal(self, robot: Any, action: np.ndarray) -> None:
        """Let a robot's controllers set their goals; set the command of the fingers."""
        composite, arm = robot.composite_controller, robot.part_controllers[ARM]
        composite.update_state()
        site = self.sim.model.site_name2id(arm.ref_name)
        data = self.sim.data._data
        arm.ref_pos[:] = data.site_xpos[site]
        arm.ref_ori_mat[:, :] = data.site_xmat[site].reshape(3, 3)
        arm.new_update = False  # everything needed to set a goal is up to date
        composite.set_goal(action)
        arm.new_update = True
        for name, controller in robot.part_controllers.items():
            if name != ARM:  # the same in all physics steps
                index = robot._ref_actuators_indexes_dict[name]
                low, high = self.sim.model.actuator_ctrlrange[index].T
                data.ctrl[index] = np.clip(controller.run_controller(), low, high)

    def _tell_goal(self, number: int, arm: Any) -> None:
        pose = arm.goal_pos, np.ascontiguousarray(arm.goal_ori, np.float64)
        self._loop.set_goal(number, arm.kp, arm.kd, arm.initial_joint, *pose)


def fits(env: Any) -> bool:
    """Whether the module was built and can compute this environment's controllers."""
    try:
        from common_utils import osc  # noqa: F401
    except ImportError:
        return False
    for robot in env.robots:
        arm = robot.part_controllers.get(ARM)
        plain = (
            type(arm).__name__ == "OperationalSpaceController"
            and arm.use_ori
            and arm.uncoupling
            and arm.impedance_mode == "fixed"
            and arm.interpolator_pos is None
            and arm.interpolator_ori is None
            and len(arm.qpos_index) == 7
            and not robot.is_mobile
            and list(robot.arms) == [ARM]
            and env.lite_physics
        )
        if not plain:
            return False
    return True
