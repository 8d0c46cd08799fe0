"""Which demonstrations a run reads, and how they are presented."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Annotated, Literal

from common_utils.paths import InputData
from common_utils.ranges import AllOr, AtLeast, Between, EpisodeLength, Infinite, Stack
from common_utils.run_config import Flag
from common_utils.stacking import StackPad


@dataclass
class KeyOptions:
    """Which of a file's arrays are read, by the names that they have there."""

    # those that make up the state, joined by "+" (for instance
    # observation.state+observation.environment_state); "": the usual ones of the format
    state: str = ""
    # those that make up proprioception, which policies on images read; "": the usual ones
    prop: str = ""
    # those that make up the action; "": the usual one
    action: str = ""
    # the one that is the reward; "": the usual one
    reward: str = ""
    # pictures of cameras: camera=key, joined by "+" (agentview=observation.images.top); cameras
    # that are not named are called as in the file
    cameras: str = ""

    def __post_init__(self) -> None:
        pairs = [pair.split("=") for pair in self.cameras.split("+") if pair]
        if wrong := ["=".join(pair) for pair in pairs if len(pair) != 2 or not all(pair)]:
            raise ValueError(
                f"cameras: '{wrong[0]}', expected camera=key, such as top=observation.images.top"
            )


@dataclass
class DemoOptions:
    """How the numbers in a demonstration file are read: the options that BC and RL share."""

    # only the demonstrations that this filter key of the file lists (mask/train: train); "": all
    filter_key: str = ""
    max_len: AllOr = -1  # drop demonstrations longer than this many steps; -1: none
    action_low: list[float] = field(default_factory=list)  # the file's action range, mapped to
    action_high: list[float] = field(default_factory=list)  # [-1, 1]: one number, or one per dim
    keys: KeyOptions = field(default_factory=KeyOptions)
    # 0: demonstrations may have been recorded at another rate than the environment is controlled at
    check_fps: Flag = 1

    def __post_init__(self) -> None:
        low, high = self.action_low, self.action_high
        if len(low) != len(high):
            raise ValueError(
                f"action_low: {low} and action_high {high}, expected both, of the same length"
            )
        if not all(-math.inf < a < b < math.inf for a, b in zip(low, high, strict=True)):
            raise ValueError(f"action_low: {low}, expected finite values below action_high {high}")


@dataclass
class DatasetConfig(DemoOptions):
    """Which demonstrations, and how they are presented."""

    path: InputData = ""  # HDF5 file, or a folder in another format (docs/datasets.md)
    rl_camera: str = "robot0_eye_in_hand"  # camera, or several joined by "+"
    num_data: AllOr = -1  # use only this many demonstrations, from the first; -1: all
    # time limit at evaluation; no demonstration may be longer
    eval_episode_len: EpisodeLength = 300
    use_state: Flag = 0  # 1: simulator states instead of images
    prop_stack: Stack = 1  # steps of proprioception per observation
    norm_action: Flag = 0  # accepted for old configs; has no effect
    obs_stack: Stack = 1  # images per observation
    state_stack: Stack = 1  # states per observation
    real_data: Flag = 0  # 1: recorded on a real robot, there is no simulator to evaluate in
    frame_stack: Stack = 1  # Meta-World's name for obs_stack; set only one of them above 1
    stack_pad: StackPad = "zeros"  # before the start: zeros or the first step
    boundary_rows: Flag = 1  # 0: drop rows at terminal observations, whose action was not played
    sampling: Literal["replacement", "epochs"] = "replacement"  # epochs: each step once per pass
    # Meta-World: simulator steps per action, checked against the file
    action_repeat: Annotated[int, Between(1, 1000)] = 2
    # images are kept in RAM up to this size (and half of the free memory), else read per batch
    max_ram_gb: Annotated[float, AtLeast(0), Infinite()] = 8.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.use_state and not self.rl_cameras:
            raise ValueError("rl_camera: '', expected a camera with use_state 0")
        if self.frame_stack > 1 and self.obs_stack > 1:
            raise ValueError(
                f"frame_stack: {self.frame_stack}, expected 1 with obs_stack {self.obs_stack}: "
                "both name the same setting"
            )

    @property
    def rl_cameras(self) -> list[str]:
        """Camera names, in the given order."""
        return [name for name in self.rl_camera.split("+") if name]

    @property
    def image_stack(self) -> int:
        """Frames per image observation; frame_stack is Meta-World's name for the same thing."""
        return max(self.frame_stack, self.obs_stack)
