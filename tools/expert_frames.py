"""Draw a strip of images from an episode played by a scripted robosuite expert.

    python -m tools.expert_frames --task ToolHang --seed 1 --noise 0.1 --out strip.png

Writes a PNG: ``--frames`` images from the first step to the last. The last has a green border
if the task is solved; all others have a red one. ``--failure 1`` instead shows the first
episode that fails, counting from ``--seed`` (raise the noise until there is one). Needs OpenGL.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
from PIL import Image

from common_utils import run_config
from common_utils.atomic import atomic_write
from common_utils.errors import run_program
from common_utils.progress import console
from common_utils.ranges import Between, EpisodeLength, NotNegative, Or
from common_utils.run_config import ConfigError, Flag
from env.rendering import Renderer, resize_picture
from env.robosuite.control import ActionNoise, Noise
from env.robosuite.experts import EXPERTS, task_expert
from env.robosuite.sim import TASKS, make_sim, reset_sim, step_sim

COLLISION_GROUP = 0  # hidden collision shapes
DRAWN = 224  # pixels at which images are drawn
BORDER = 3
ATTEMPTS = 50  # episodes to try before giving up
COLOURS = {False: (200, 40, 40), True: (40, 160, 60)}


@dataclass
class MainConfig:
    """Which episode, and how it is shown."""

    # one of the tasks with an expert
    task: str = "Lift"
    # seed of the environment and the expert
    seed: NotNegative = 1
    # standard deviation of action noise
    noise: ActionNoise = 0.1
    # time limit in control steps (-1: the task's)
    episode_length: Annotated[EpisodeLength, Or(-1)] = -1
    # show the first failure at or after the seed, instead of the first success
    failure: Flag = 0
    # control steps to play after a success
    after: NotNegative = 0
    camera: str = "agentview"
    # images in the strip
    frames: Annotated[int, Between(2, 1000)] = 8
    # width and height of each image in pixels
    size: Annotated[int, Between(16, 4096)] = 128
    # the PNG to write
    out: str = ""

    def __post_init__(self) -> None:
        if self.task not in EXPERTS:
            raise ValueError(f"task: '{self.task}', expected one of {', '.join(EXPERTS)}")
        if self.episode_length == -1:
            self.episode_length = TASKS[self.task].horizon


def play(cfg: MainConfig, sim: Any, seed: int) -> tuple[bool, list[np.ndarray], str]:
    """One episode: whether it is solved, joint positions [nq] of each step, the last phase."""
    reset_sim(sim, seed)
    expert = task_expert(cfg.task, sim, seed, Noise.of(cfg.noise))
    poses, success = [sim.sim.data.qpos.copy()], False
    while not success and len(poses) <= cfg.episode_length:
        success = step_sim(sim, expert.act())
        poses.append(sim.sim.data.qpos.copy())
    for _ in range(cfg.after if success else 0):
        success = step_sim(sim, expert.act())  # it may have been undone
        poses.append(sim.sim.data.qpos.copy())
    return success, poses, expert.phase


def picture(cfg: MainConfig, sim: Any, renderer: Renderer, pose: np.ndarray) -> np.ndarray:
    """uint8 [size, size, 3]: the scene with the joints at ``pose``, bordered."""
    sim.sim.data.qpos[:] = pose
    sim.sim.forward()
    drawn = renderer.render(sim.sim.data._data, renderer.camera_id(cfg.camera))
    return resize_picture(drawn, cfg.size)


def strip(cfg: MainConfig) -> Path:
    """Write the strip and return its path. Raises ConfigError when no such episode is found."""
    if not cfg.out:
        raise ConfigError("out: '', expected a PNG file")
    sim = make_sim(cfg.task)
    for seed in range(cfg.seed, cfg.seed + ATTEMPTS):
        success, poses, phase = play(cfg, sim, seed)
        if success != bool(cfg.failure):
            break
    else:
        wanted = "fails" if cfg.failure else "succeeds"
        raise ConfigError(f"none of {ATTEMPTS} episodes starting at seed {cfg.seed} {wanted}")
    renderer = Renderer(sim.sim.model._model, DRAWN, DRAWN, "faithful", (COLLISION_GROUP,))
    steps = np.linspace(0, len(poses) - 1, cfg.frames).round().astype(int)
    shown = [picture(cfg, sim, renderer, poses[step]) for step in steps]
    renderer.close()
    for number, image in enumerate(shown):
        colour = COLOURS[success and number == cfg.frames - 1]
        for edge in (image[:BORDER], image[-BORDER:], image[:, :BORDER], image[:, -BORDER:]):
            edge[:] = colour
    small = Image.fromarray(np.concatenate(shown, 1)).quantize(128, dither=Image.Dither.NONE)
    with atomic_write(cfg.out) as temp:
        small.save(temp, format="PNG", optimize=True)
    console().print(
        f"{cfg.out}: {cfg.task}, seed {seed}, noise {cfg.noise:g}, "
        f"{'success' if success else 'failure'} after {len(poses) - 1} steps"
        f"{f', phase {phase}' if phase else ''}; steps {steps.tolist()}",
        soft_wrap=True,
    )
    return Path(cfg.out)


def main() -> int:
    """Entry point; exit status 0, or 2 without an episode, a camera or OpenGL."""
    cfg = run_config.parse(MainConfig)
    strip(cfg)
    return 0


if __name__ == "__main__":
    sys.exit(run_program(main))
