"""Which demonstrations a run reads, and how they are presented."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from bc.loader import DatasetError
from common_utils.paths import InputFile
from common_utils.run_config import Flag


@dataclass
class DemoOptions:
    """How the numbers of a demonstration file are taken: the options that BC and RL share."""

    max_len: int = -1  # drop demonstrations longer than this many steps; -1: none
    action_low: list[float] = field(default_factory=list)  # the file's action range, mapped to
    action_high: list[float] = field(default_factory=list)  # [-1, 1]: one number, or one per dim

    def __post_init__(self) -> None:
        if len(self.action_low) != len(self.action_high):
            raise DatasetError(
                f"dataset.action_low {self.action_low} and dataset.action_high "
                f"{self.action_high}: give both, of the same length"
            )
        pairs = zip(self.action_low, self.action_high, strict=True)
        if not all(-math.inf < low < high < math.inf for low, high in pairs):
            raise DatasetError(
                f"dataset.action_low {self.action_low} must be below dataset.action_high "
                f"{self.action_high}, all of them finite"
            )


@dataclass
class DatasetConfig(DemoOptions):
    """Which demonstrations, and how they are presented."""

    path: InputFile = ""  # HDF5 file
    rl_camera: str = "robot0_eye_in_hand"  # camera, or several joined by "+"
    num_data: int = -1  # use the first so many demonstrations; -1: all
    eval_episode_len: int = 300  # time limit at evaluation; no demonstration may be longer
    use_state: Flag = 0  # 1: simulator states instead of images
    prop_stack: int = 1  # steps of proprioception per observation
    norm_action: Flag = 0  # accepted for old configs; has no effect
    obs_stack: int = 1  # images per observation
    state_stack: int = 1  # states per observation
    real_data: Flag = 0  # 1: recorded on a real robot, there is no simulator to evaluate in
    frame_stack: int = 1  # Meta-World's name for obs_stack; set only one of them above 1
    stack_pad: Literal["zeros", "repeat"] = "zeros"  # before the start: zeros or the first step
    boundary_rows: Flag = 1  # 0: drop rows at terminal observations, whose action was not played
    sampling: Literal["replacement", "epochs"] = "replacement"  # epochs: each step once per pass
    action_repeat: int = 2  # Meta-World: simulator steps per action, checked against the file
    # images are kept in RAM up to this size (and half of what is free), read per batch beyond
    max_ram_gb: float = 8.0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("prop_stack", "obs_stack", "state_stack", "frame_stack", "action_repeat"):
            if getattr(self, name) < 1:
                raise DatasetError(f"dataset.{name} is {getattr(self, name)}; must be at least 1")
        if self.num_data == 0 or self.num_data < -1:
            raise DatasetError(f"dataset.num_data is {self.num_data}; must be -1 or at least 1")
        if not self.use_state and not self.rl_cameras:
            raise DatasetError("dataset.rl_camera is empty; images need at least one camera")

    @property
    def rl_cameras(self) -> list[str]:
        """Camera names, in the given order."""
        return [name for name in self.rl_camera.split("+") if name]

    @property
    def image_stack(self) -> int:
        """Frames per image observation; frame_stack is Meta-World's name for the same thing."""
        if self.frame_stack > 1 and self.obs_stack > 1:
            raise DatasetError("dataset.frame_stack and dataset.obs_stack: set only one above 1")
        return max(self.frame_stack, self.obs_stack)
