"""robosuite's control loop of fixed-base arms (csrc/osc.cc); env/robosuite/fast.py is the only
caller. Functions and arrays are passed as addresses."""

import numpy as np

class Loop:
    def __init__(
        self, functions: dict[str, int], model: int, data: int, nv: int, arrays: dict[str, int]
    ) -> None: ...
    def add_arm(
        self,
        grip_site: int,
        base_site: int,
        in_base_frame: bool,
        qpos_index: np.ndarray,
        qvel_index: np.ndarray,
        ctrl_index: np.ndarray,
        low: np.ndarray,
        high: np.ndarray,
    ) -> None: ...
    def set_goal(
        self,
        number: int,
        kp: np.ndarray,
        kd: np.ndarray,
        initial: np.ndarray,
        position: np.ndarray,
        orientation: np.ndarray,
    ) -> None: ...
    def run(self, steps: int, begun: bool) -> None: ...
