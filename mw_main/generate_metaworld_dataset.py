"""Record demonstrations by Meta-World's scripted policies, in the layout that BC and RL read.

    python mw_main/generate_metaworld_dataset.py --env_cfg.env_name Assembly --num_episodes 3 \
        --env_cfg.frame_stack 1 --env_cfg.end_on_success 1 \
        --output_path release/data/metaworld/Assembly_frame_stack_1_96x96_end_on_success

Only successful episodes are kept; the share of failures is printed. Without cameras
(``--env_cfg.camera_names []``) only states and proprioception are written, and no OpenGL
library is needed. Attempt i has environment seed ``seed_for(seed, i)``.
"""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import imageio.v2 as imageio
import numpy as np

from common_utils import run_config
from common_utils.atomic import atomic_torch_save, atomic_write
from common_utils.demo_file import FILE_NAME, Recording, write_demos
from common_utils.errors import run_program
from common_utils.progress import RunProgress, console
from common_utils.ranges import (
    Between,
    EpisodeLength,
    NotNegative,
    NotNegativeNumber,
    PictureSize,
    Positive,
    RewardScale,
    Share,
    Stack,
)
from common_utils.run_config import ConfigError, Flag
from common_utils.run_folder import output_folder
from common_utils.seeding import seed_for
from env.core import Expert
from env.experts import make_expert
from env.metaworld_wrapper import PixelMetaWorld


@dataclass
class MetaWorldEnvConfig:
    """Arguments of PixelMetaWorld, recorded in env_cfg.json."""

    # task, by any of its names (Assembly, assembly, assembly-v3)
    env_name: str = "Assembly"
    # Meta-World's robot
    robots: list[str] = field(default_factory=lambda: ["Sawyer"])
    # time limit in control steps
    episode_length: EpisodeLength = 100
    # simulator steps per control step
    action_repeat: Annotated[int, Between(1, 1000)] = 2
    # frames per image observation (newest first)
    frame_stack: Stack = 2
    # another name for frame_stack; set only one above 1
    obs_stack: Stack = 1
    # only 0, the sparse reward, is supported
    reward_shaping: Flag = 0
    # pixels of stored images
    rl_image_size: PictureSize = 96
    # device of observation tensors: auto, cpu, cuda or cuda:N
    device: str = "cpu"
    # cameras to store; [] stores states only
    camera_names: list[str] = field(default_factory=lambda: ["corner2"])
    # the camera of the agent
    rl_camera: str = "corner2"
    # factor on rewards
    env_reward_scale: RewardScale = 1.0
    # end the episode at success (0: it continues to the time limit)
    end_on_success: Flag = 0
    # store the state vector
    use_state: Flag = 1
    # faithful or fast (docs/environments.md)
    render_quality: Literal["faithful", "fast"] = "faithful"


@dataclass
class MainConfig:
    """What to record, and where."""

    # folder of dataset.hdf5 and env_cfg.json
    output_path: str = "data/metaworld/Assembly"
    # successful episodes to record
    num_episodes: Positive = 1
    # also write episode_{i}.gif and .mp4 from the first camera
    save_gifs: Flag = 0
    # also write each episode in MoDem's layout (episode_{i}.pt, frames and states)
    add_modem_format: Flag = 0
    # source of all randomness
    seed: NotNegative = 0
    # standard deviation of Gaussian noise on the executed (and recorded) actions
    action_noise: NotNegativeNumber = 0.0
    # share of steps at which a uniformly random action is executed (and recorded) instead: a
    # noisy demonstrator
    random_action_rate: Share = 0.0
    # give up when more than this share of at least 20 episodes fails
    max_failure_rate: Share = 0.95
    # replace an existing dataset
    overwrite: Flag = 0
    env_cfg: MetaWorldEnvConfig = field(default_factory=MetaWorldEnvConfig)


def record_episode(
    env: PixelMetaWorld,
    expert: Expert,
    cfg: MainConfig,
    seed: int,
    pictures: list[np.ndarray] | None,
) -> tuple[Recording, bool]:
    """Play one scripted episode; returns (recording, whether it succeeded)."""
    obs, images = env.reset(seed=seed)
    expert.reset(np.random.default_rng(seed))
    recording, terminal, success = Recording(), False, False
    while not terminal:
        action = expert.act()
        before = {(cfg.env_cfg.rl_camera if k == "obs" else k): v.numpy() for k, v in obs.items()}
        state = env.env.raw_state
        if pictures is not None:
            pictures.append(next(iter(images.values())).transpose(1, 2, 0))
        obs, reward, terminal, success_now, images = env.step(action)
        success = success or success_now
        recording.append(before, state, action, reward)
    return recording, success


def generate(cfg: MainConfig) -> Path:
    """Record ``num_episodes`` successes; returns the dataset file.

    Raises ConfigError for an existing dataset or a task whose scripted policy keeps failing.
    """
    out = output_folder(cfg.output_path, "output_path", "a folder")
    if (out / FILE_NAME).exists() and not cfg.overwrite:
        raise ConfigError(f"output_path: '{out / FILE_NAME}' exists; --overwrite 1 replaces it")
    if cfg.save_gifs and not cfg.env_cfg.camera_names:
        raise ConfigError("save_gifs: 1 needs a camera in env_cfg.camera_names")
    env = PixelMetaWorld(**asdict(cfg.env_cfg))
    expert = make_expert(env.env, cfg.action_noise, random_rate=cfg.random_action_rate)
    kept: list[Recording] = []
    seeds: list[dict[str, Any]] = []
    tried = 0
    try:
        with RunProgress(cfg.num_episodes, "demonstrations") as progress:
            while len(kept) < cfg.num_episodes:
                seed = seed_for(cfg.seed, "demonstration", tried, bits=31)
                pictures: list[np.ndarray] | None = [] if cfg.save_gifs else None
                recording, success = record_episode(env, expert, cfg, seed, pictures)
                tried += 1
                if success:
                    _save_extras(cfg, out, len(kept), recording, pictures)
                    kept.append(recording)
                    seeds.append({"seed": seed})
                    progress.update(len(kept), failed=tried - len(kept))
                elif tried >= 20 and 1 - len(kept) / tried > cfg.max_failure_rate:
                    raise ConfigError(
                        f"env_cfg.env_name: {tried - len(kept)} of {tried} scripted episodes of "
                        f"{cfg.env_cfg.env_name} failed within env_cfg.episode_length "
                        f"{cfg.env_cfg.episode_length} (action_noise {cfg.action_noise}, "
                        f"random_action_rate {cfg.random_action_rate}), expected a share of at "
                        f"most max_failure_rate {cfg.max_failure_rate:g}"
                    )
    finally:
        env.close()
    env_args = {
        "suite": "metaworld",
        "env_name": cfg.env_cfg.env_name,
        "env_kwargs": asdict(cfg.env_cfg),
        "action_noise": cfg.action_noise,
        "random_action_rate": cfg.random_action_rate,
    }
    path = write_demos(out, kept, cfg.env_cfg.camera_names, env_args, seeds)
    lengths = ", ".join(str(len(r)) for r in kept[:10]) + (", ..." if len(kept) > 10 else "")
    console().print(
        f"{len(kept)} demonstrations of {cfg.env_cfg.env_name} in {path}; {tried - len(kept)} of "
        f"{tried} episodes failed; lengths {lengths}",
        soft_wrap=True,
    )
    return path


def _save_extras(
    cfg: MainConfig,
    out: Path,
    number: int,
    recording: Recording,
    pictures: list[np.ndarray] | None,
) -> None:
    """Videos and the MoDem-style export of one kept episode."""
    out.mkdir(parents=True, exist_ok=True)
    if pictures:
        fps = 80 // cfg.env_cfg.action_repeat
        for suffix, options in ((".gif", {"fps": fps, "loop": 0}), (".mp4", {"fps": fps})):
            with atomic_write(out / f"episode_{number}{suffix}") as temp:
                imageio.mimwrite(temp, list[Any](pictures), format=suffix[1:], **options)
    if cfg.add_modem_format:
        import torch

        episode = {
            "frames": {k: torch.from_numpy(np.stack(v)) for k, v in recording.obs.items()},
            "states": torch.from_numpy(np.stack(recording.states)),
            "actions": torch.from_numpy(np.stack(recording.actions)),
            "rewards": torch.tensor(recording.rewards),
        }
        atomic_torch_save(episode, out / f"episode_{number}.pt")


def main() -> int:
    """Entry point: parse, record, exit status 0."""
    generate(run_config.parse(MainConfig))
    return 0


if __name__ == "__main__":
    sys.exit(run_program(main))
