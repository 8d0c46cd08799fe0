"""Rendering: cost of a picture and what render_quality fast changes in it.

    MUJOCO_GL=egl python -m benchmarks.render [--json FILE] [--quick]

Process CPU time per picture (software rendering uses several threads: its wall time is
lower), and the mean absolute difference to the faithful picture over scripted episodes.
"""

from __future__ import annotations

import argparse
import os

import numpy as np

from benchmarks.common import Report, measure, run, timing_options
from common_utils.gl import BACKENDS, best_backend
from env.experts import metaworld_expert
from env.factory import EnvConfig
from env.metaworld_wrapper import MetaWorldEnv

TASKS = ("Assembly", "CoffeePush")
SIZES = (96, 224)
QUALITIES = ("faithful", "fast")


def make(task: str, size: int, quality: str) -> MetaWorldEnv:
    cfg = EnvConfig(suite="metaworld", task=task, action_repeat=2, image_size=size)
    cfg.render_quality = "fast" if quality == "fast" else "faithful"
    return MetaWorldEnv(cfg)


def pictures(task: str, quality: str, every: int) -> np.ndarray:
    """Frames uint8 [N, 96, 96, 3] along one scripted episode."""
    env, frames = make(task, 96, quality), []
    expert = metaworld_expert(env.task)
    env.reset(seed=1)
    done, step = False, 0
    while not done:
        if step % every == 0:
            frames.append(env.render())
        _, _, terminated, truncated, _ = env.step(expert.get_action(env.raw_state).clip(-1, 1))
        done, step = terminated or truncated, step + 1
    env.close()
    return np.stack(frames)


def main(report: Report, args: argparse.Namespace) -> None:
    """All tasks, sizes and qualities with the back end in MUJOCO_GL (default: the best here)."""
    backend = os.environ.get("MUJOCO_GL", "")
    backend = backend if backend in BACKENDS else best_backend()
    if backend == "disabled":
        raise SystemExit("no OpenGL back end renders here; python -m common_utils.doctor")
    os.environ["MUJOCO_GL"] = backend
    for task in TASKS[:1] if args.quick else TASKS:
        for size in SIZES:
            for quality in QUALITIES:
                env = make(task, size, quality)
                env.reset(seed=1)
                timing = measure(env.render, **{"repeats": 3, **timing_options(args)})
                report.add_timing(f"{backend}, {task}, {size} x {size}, {quality}", timing)
                env.close()
        every = 20 if args.quick else 5
        kept = [pictures(task, quality, every).astype(np.int16) for quality in QUALITIES]
        difference = np.abs(kept[0] - kept[1])
        case = f"{backend}, {task}, 96 x 96, fast"
        report.add(case, "difference_to_faithful", float(difference.mean()), "of 255")
        far = 100.0 * float((difference.max(axis=-1) > 25).mean())
        report.add(case, "pixels_off_by_over_25", far, "%")


if __name__ == "__main__":
    run(main, __doc__)
