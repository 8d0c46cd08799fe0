"""What an environment is, as plain data."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from common_utils.config_types import Flag
from common_utils.ranges import (
    Between,
    EpisodeLength,
    NotNegativeNumber,
    PictureSize,
    PositiveNumber,
    RewardScale,
    Stack,
)
from common_utils.specs import ArraySpec
from common_utils.stacking import StackPad
from env.suites import AnySuite

GymVector = Literal["", "sync", "async", "vector_entry_point"]


@dataclass
class EnvConfig:
    """What an environment is and what it delivers; plain data, so workers can rebuild it."""

    # what simulates it (docs/environments.md)
    suite: AnySuite = ""
    # task of the suite (Meta-World: Assembly or assembly-v3; gymnasium: the registered id)
    task: str = ""
    # cameras to deliver, "" or none for states only
    cameras: list[str] = field(default_factory=list)
    # size at which videos are rendered
    image_size: PictureSize = 224
    # size of delivered images
    rl_image_size: PictureSize = 96
    # steps per observation, newest first: images
    obs_stack: Stack = 1
    # proprioception
    prop_stack: Stack = 1
    # state vectors
    state_stack: Stack = 1
    # what fills stacks before the episode's start: zeros, or repeat (the first frame)
    stack_pad: StackPad = "zeros"
    # deliver the state vector
    use_state: Flag = 0
    # time limit in control steps
    episode_length: EpisodeLength = 100
    # simulator steps per control step
    action_repeat: Annotated[int, Between(1, 1000)] = 1
    # end the episode at the first success
    end_on_success: Flag = 1
    # factor on rewards
    env_reward_scale: RewardScale = 1.0
    # faithful or fast (docs/environments.md)
    render_quality: Literal["faithful", "fast"] = "faithful"
    # deliver the big images of every step in info["images"]
    record_images: Flag = 0
    # robosuite: actions are relative (1), or the hand's pose in the world (0)
    ctrl_delta: Flag = 1
    # robosuite: deliver the simulator's state in info["sim_state"], and with what belongs to it in
    # files in info["recorded"]
    record_sim_state: Flag = 0
    # gymnasium: module to import first, so that it registers the id
    gym_module: str = ""
    # gymnasium, remote: observation key(s) of the state, joined by "+" ("": observations are one
    # vector)
    gym_state_key: str = ""
    # gymnasium, remote: observation key(s) of proprioception ("": none)
    gym_prop_key: str = ""
    # gymnasium, remote: what is success: an info key, "terminated", "truncated" (lasting to the
    # time limit), or "" for a reward of at least 1
    gym_success_key: str = ""
    # gymnasium: the vector environment that plays a run's num_env environments: of gymnasium (sync,
    # async), or the task's own (vector_entry_point); "": none
    gym_vector: GymVector = ""
    # remote: address of the server that has the environment, ws://HOST:PORT
    remote_url: str = ""
    # remote: seconds that an answer to a step may take
    remote_step_timeout: PositiveNumber = 10.0
    # remote: seconds that a reset may take (a person may have to put the scene in order)
    remote_reset_timeout: PositiveNumber = 600.0
    # remote: seconds to go on trying after the connection was lost
    remote_retry_for: NotNegativeNumber = 300.0

    # particle, block_pushing: distance at which a goal counts as reached (0: the task's own)
    goal_tolerance: NotNegativeNumber = 0.0
    # particle: leave the velocity out of the state
    hide_velocity: Flag = 0
    # block_pushing: use a running pybullet server, which shows the scene
    shared_memory: Flag = 0


@dataclass
class GymConfig:
    """How a run reads an environment of gymnasium (suites gymnasium and remote;
    docs/environments.md)."""

    # module to import first, so that it registers the id
    module: str = ""
    # observation key(s) of the state, joined by "+" ("": observations are one vector)
    state_key: str = ""
    # observation key(s) of proprioception ("": none)
    prop_key: str = ""
    # what is success: an info key, terminated, truncated, or "" for a reward of at least 1
    success_key: str = ""
    # gymnasium: the vector environment that plays num_env environments (RL): of gymnasium (sync,
    # async), or the task's own (vector_entry_point); "": none
    vector: GymVector = ""

    def env_fields(self) -> dict[str, Any]:
        """The fields of EnvConfig that these are."""
        return {f"gym_{name}": value for name, value in vars(self).items()}


@dataclass
class RemoteConfig:
    """Where an environment in another process is, and how long to wait for it (suite remote;
    docs/remote.md)."""

    # address of the server that has the environment, ws://HOST:PORT
    url: str = ""
    # seconds that an answer to a step may take
    step_timeout: PositiveNumber = 10.0
    # seconds that a reset may take (a person may have to put the scene in order)
    reset_timeout: PositiveNumber = 600.0
    # seconds to go on trying after the connection was lost
    retry_for: NotNegativeNumber = 300.0

    def env_fields(self) -> dict[str, Any]:
        """The fields of EnvConfig that these are."""
        return {f"remote_{name}": value for name, value in vars(self).items()}


def arm_observations(cfg: EnvConfig, prop_dim: int, state_dim: int) -> dict[str, ArraySpec]:
    """What the suites with arms deliver: cameras, proprioception and, with use_state, the state.

    prop_dim, state_dim: of a single step.
    """
    size, stack = cfg.rl_image_size, cfg.obs_stack
    specs = {c: ArraySpec((3 * stack, size, size), "uint8", stack) for c in cfg.cameras}
    specs["prop"] = ArraySpec((prop_dim * cfg.prop_stack,), "float32", cfg.prop_stack)
    if cfg.use_state:
        specs["state"] = ArraySpec((state_dim * cfg.state_stack,), "float32", cfg.state_stack)
    return specs
