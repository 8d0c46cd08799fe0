"""Rendering: the cost of an image, and how much ``render_quality fast`` changes it.

    MUJOCO_GL=egl python -m benchmarks.render [--suite robosuite] [--json FILE] [--quick]

Process CPU time per image (software rendering uses several threads: its wall time is
lower), and the mean absolute difference to the faithful image over scripted episodes.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.common import Report, measure, parser, start, timing_options
from common_utils.errors import run_program
from common_utils.gl import BACKENDS, best_backend
from env.config import EnvConfig
from env.core import EnvError
from env.experts import make_expert
from env.factory import make_env
from env.rendering import resize_picture
from env.robosuite.env import RobosuiteEnv

SIZES = (96, 224)
QUALITIES = ("faithful", "fast")


@dataclass(frozen=True)
class Scene:
    """A task seen by one camera."""

    suite: str
    task: str
    camera: str
    # simulator steps per control step, and pixels at which the suite draws its images
    action_repeat: int = 1
    drawn: int = 224

    def make(self, size: int, quality: str) -> Any:
        """The environment, reset to its first episode."""
        cfg = EnvConfig(
            suite=self.suite,
            task=self.task,
            image_size=size,
            episode_length=150,
            action_repeat=self.action_repeat,
            render_quality="fast" if quality == "fast" else "faithful",
        )
        env = make_env(cfg)
        env.reset(seed=1)
        return env

    def picture(self, env: Any) -> np.ndarray:
        """The camera's image, drawn now."""
        drawn = env.draw if isinstance(env, RobosuiteEnv) else env.render  # render keeps pictures
        picture: np.ndarray = drawn(self.camera)
        return picture

    def expert(self, env: Any) -> Callable[[], np.ndarray]:
        """The scripted policy's next action."""
        expert = make_expert(env)
        expert.reset(np.random.default_rng(1))
        return expert.act


SCENES = (
    Scene("metaworld", "Assembly", "corner2", action_repeat=2, drawn=96),
    Scene("robosuite", "PickPlaceCan", "robot0_eye_in_hand"),
    Scene("robosuite", "PickPlaceCan", "agentview"),
    Scene("robosuite", "Lift", "agentview"),
    Scene("robosuite", "Lift", "robot0_eye_in_hand"),
    Scene("robosuite", "NutAssemblySquare", "agentview"),
    Scene("metaworld", "CoffeePush", "corner2", action_repeat=2, drawn=96),
)
QUICK = 2  # scenes of a smoke run


def pictures(scene: Scene, quality: str, every: int) -> np.ndarray:
    """Frames uint8 [N, 96, 96, 3] along one scripted episode, as they are delivered."""
    env, frames = scene.make(scene.drawn, quality), []
    act, done, step = scene.expert(env), False, 0
    while not done:
        if step % every == 0:
            frames.append(resize_picture(scene.picture(env), 96))
        _, _, terminated, truncated, _ = env.step(act())
        done, step = terminated or truncated, step + 1
    env.close()
    return np.stack(frames)


def bench(report: Report, args: argparse.Namespace) -> None:
    """All scenes, sizes and qualities with the back end in MUJOCO_GL (default: the best here)."""
    backend = os.environ.get("MUJOCO_GL", "")
    backend = backend if backend in BACKENDS else best_backend()
    if backend == "disabled":
        raise EnvError("no OpenGL back end renders here; python -m common_utils.doctor")
    os.environ["MUJOCO_GL"] = backend
    scenes = [s for s in SCENES if args.suite in (s.suite, "all")]
    for scene in scenes[:QUICK] if args.quick else scenes:
        name = f"{backend}, {scene.task}, {scene.camera}"
        for size in SIZES:
            for quality in QUALITIES:
                env = scene.make(size, quality)
                options = {"repeats": 3, **timing_options(args)}
                timing = measure(lambda e=env, s=scene: s.picture(e), **options)  # type: ignore[misc]
                case = f"{name}, {size} x {size}, {quality}"
                report.add_timing(case, timing)
                # one core that does nothing else
                report.add(case, "pictures_per_cpu_second", 1000 / timing.cpu_ms, "1/s")
                env.close()
        every = 20 if args.quick else 5
        kept = [pictures(scene, quality, every).astype(np.int16) for quality in QUALITIES]
        difference = np.abs(kept[0] - kept[1])
        case = f"{name}, delivered at 96 x 96, fast"
        report.add(case, "difference_to_faithful", float(difference.mean()), "of 255")
        far = 100.0 * float((difference.max(axis=-1) > 25).mean())
        report.add(case, "pixels_off_by_over_25", far, "%")


def main() -> None:
    """Command line."""
    options = parser(__doc__)
    options.add_argument("--suite", choices=("all", "metaworld", "robosuite"), default="all")
    given = options.parse_args()
    collected = start(given)
    bench(collected, given)
    collected.write(given.json)


if __name__ == "__main__":
    sys.exit(run_program(main))
