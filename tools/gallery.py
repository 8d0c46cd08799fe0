"""Record the videos of docs/gallery.md: an expert's success and failure at each task.

    python -m tools.gallery --out release/results/gallery
    python -m tools.gallery --out release/results/gallery --only Lift+PUSH

Writes ``SUITE_TASK_success.mp4`` and ``..._failure.mp4``, and ``gallery.json``, which has the seed,
the noise and the number of steps of each video. A success is the first one from ``--seed`` on at
the noise of demonstrations; a failure is the first one at more noise, with which there soon is one.
Needs OpenGL (block pushing and the particle do not).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
from PIL import Image

from common_utils import run_config
from common_utils.atomic import atomic_json
from common_utils.errors import UserError, run_program
from common_utils.progress import console
from common_utils.ranges import Between, NotNegative
from common_utils.run_folder import output_folder
from common_utils.seeding import seed_for
from env.config import EnvConfig
from env.core import Env
from env.experts import make_expert
from env.factory import make_env
from evaluate.video import annotate, write_video

ATTEMPTS = 40  # episodes to try before giving up
FPS, FRAMES = 20, 80  # of a video: at most four seconds, long episodes are sped up
HOLD = 15  # frames for which the end is shown
OWN_LIMIT = 10**6  # longer than the limit of tasks that have one


@dataclass(frozen=True)
class Scene:
    """A task, its time limit in control steps, the expert's noise for success and failure, and the
    camera ("": the environment's usual one)."""

    suite: str
    task: str
    length: int
    noise: float
    failing: float
    action_repeat: int = 1
    camera: str = ""

    @property
    def env_cfg(self) -> EnvConfig:
        """Its environment, without cameras."""
        return EnvConfig(
            suite=self.suite,
            task=self.task,
            use_state=1,
            episode_length=self.length,
            action_repeat=self.action_repeat,
            render_quality="fast",  # small pictures hardly differ, and take a tenth of the time
        )


SCENES = (
    Scene("robosuite", "Lift", 100, 0.1, 1.2),
    Scene("robosuite", "PickPlaceCan", 200, 0.1, 0.8),
    Scene("robosuite", "NutAssemblySquare", 300, 0.1, 0.6),
    Scene("robosuite", "TwoArmTransport", 800, 0.1, 0.6, camera="frontview"),
    Scene("robosuite", "ToolHang", 700, 0.1, 0.5),
    Scene("metaworld", "Assembly", 100, 0.1, 1.5, 2),
    Scene("metaworld", "BoxClose", 100, 0.1, 1.5, 2),
    Scene("metaworld", "CoffeePush", 100, 0.1, 1.5, 2),
    Scene("metaworld", "StickPull", 100, 0.1, 1.5, 2),
    Scene("metaworld", "DrawerOpen", 100, 0.1, 2.5, 2),
    Scene("particle", "PARTICLE_2d", OWN_LIMIT, 0.0, 0.3),
    Scene("block_pushing", "PUSH", OWN_LIMIT, 0.0, 0.05),
    Scene("block_pushing", "PUSH_DISCONTINUOUS", OWN_LIMIT, 0.0, 0.05),
    Scene("block_pushing", "PUSH_MULTIMODAL", OWN_LIMIT, 0.0, 0.05),
)


@dataclass
class MainConfig:
    """Which videos, and where."""

    # folder of the videos and gallery.json
    out: str = ""
    # only these tasks, joined by "+"
    only: str = ""
    # seed of the first episode that is tried
    seed: NotNegative = 1
    # height of the videos in pixels
    size: Annotated[int, Between(32, 1024)] = 160

    def __post_init__(self) -> None:
        known = [scene.task for scene in SCENES]
        for task in self.only.split("+") if self.only else ():
            if task not in known:
                raise ValueError(f"only: '{task}', expected some of {', '.join(known)}")

    @property
    def scenes(self) -> list[Scene]:
        """The chosen ones."""
        return [s for s in SCENES if not self.only or s.task in self.only.split("+")]


def play(env: Env, expert: Any, seed: int) -> tuple[bool, list[np.ndarray]]:
    """One episode: whether it is solved, and its actions, float32 [A] each."""
    env.reset(seed=seed)
    expert.reset(np.random.default_rng(seed_for(seed, "gallery")))
    actions: list[np.ndarray] = []
    while True:
        actions.append(expert.act())
        *_, terminated, truncated, info = env.step(actions[-1])
        if terminated or truncated:
            return bool(info["success"]), actions


def film(
    env: Env, seed: int, actions: list[np.ndarray], size: int, camera: str = ""
) -> list[np.ndarray]:
    """The episode again: frames of height ``size`` with the step and the outcome written on them.

    Only the frames that are shown are rendered: at most ``FRAMES``, evenly spaced, and the last.
    """
    shown = set(np.linspace(0, len(actions), min(FRAMES, len(actions) + 1)).round().astype(int))
    env.reset(seed=seed)
    frames = [annotate(_picture(env, size, camera), "0")]
    success = False
    for step, action in enumerate(actions, 1):
        *_, info = env.step(action)
        success = success or bool(info["success"])
        if step in shown:
            ended = step == len(actions) and not success
            picture = _picture(env, size, camera)
            frames.append(annotate(picture, f"{step}{' fail' * ended}", success))
    return frames + [frames[-1]] * HOLD


def _picture(env: Env, size: int, camera: str) -> np.ndarray:
    drawn = Image.fromarray(env.render(camera or None))
    width = round(drawn.width * size / drawn.height)
    return np.asarray(drawn.resize((width, size), Image.Resampling.LANCZOS))


def record(scene: Scene, cfg: MainConfig) -> Iterator[dict[str, Any]]:
    """Write both videos of a task; yields what gallery.json says of each."""
    for wanted, noise in ((True, scene.noise), (False, scene.failing)):
        env = make_env(scene.env_cfg)
        expert = make_expert(env, noise)
        for seed in range(cfg.seed, cfg.seed + ATTEMPTS):
            success, actions = play(env, expert, seed)
            if success == wanted:
                break
        else:
            raise UserError(
                f"{scene.task}: none of {ATTEMPTS} episodes from seed {cfg.seed} at noise "
                f"{noise:g} {'succeeds' if wanted else 'fails'}; expected one (--seed)"
            )
        name = f"{scene.suite}_{scene.task}_{'success' if success else 'failure'}.mp4"
        frames = film(env, seed, actions, cfg.size, scene.camera)
        write_video(Path(cfg.out) / name, frames, FPS)
        env.close()
        yield {"file": name, "task": scene.task, "suite": scene.suite, "success": success,
               "seed": seed, "noise": noise, "steps": len(actions)}  # fmt: skip


def gallery(cfg: MainConfig) -> Path:
    """Write the chosen videos; returns ``gallery.json``, which keeps the rows of the others."""
    folder = output_folder(cfg.out, "out", "a folder, such as release/results/gallery")
    file = Path(folder or cfg.out) / "gallery.json"
    rows = {row["file"]: row for row in json.loads(file.read_text())} if file.is_file() else {}
    for scene in cfg.scenes:
        for row in record(scene, cfg):
            rows[row["file"]] = row
            console().print(
                f"{row['file']}: seed {row['seed']}, noise {row['noise']:g}, {row['steps']} steps",
                soft_wrap=True,
            )
        atomic_json(list(rows.values()), file)
    return file


def main() -> int:
    """Entry point; exit status 0, or 2 without a simulator, OpenGL, or such an episode."""
    gallery(run_config.parse(MainConfig))
    return 0


if __name__ == "__main__":
    sys.exit(run_program(main))
