"""Record demonstrations of robosuite tasks by scripted experts, in robomimic's layout.

    python -m tools.generate_demos --task PickPlaceCan --num 200 --noise 0.1 --seed 1 \
        --out release/data/robomimic/can

Writes ``processed_data96.hdf5`` and ``env_cfg.json`` into the folder ``--out``. Only successful
episodes are kept. ``--cameras "[]"`` stores states only, and needs no OpenGL. An interrupted run
continues when the same command is run again: finished episodes are kept in
``OUT/.parts``. The file depends only on the options, not on the workers or interruptions.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, Literal

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from common_utils import run_config
from common_utils.errors import run_program
from common_utils.ranges import (
    Between,
    EpisodeLength,
    NotNegative,
    Or,
    PictureSize,
    Positive,
    Share,
)
from common_utils.run_config import Flag
from common_utils.run_folder import output_folder
from env.robosuite.control import ActionNoise, Jitter, Noise
from env.robosuite.experts import EXPERTS
from env.robosuite.sim import TASKS
from tools.demo_recorder import Settings
from tools.recording import DemoRun, crew_size, kept_reported


@dataclass
class MainConfig:
    """What to record, and where."""

    # Lift, PickPlaceCan, NutAssemblySquare, TwoArmTransport or ToolHang
    task: str = "PickPlaceCan"
    # successful episodes to record
    num: Positive = 200
    # standard deviation of Gaussian noise on the executed (and recorded) actions, which range
    # from -1 to 1
    noise: ActionNoise = 0.1
    # metres by which waypoints in free space vary (-1: to match the noise, 0.015 at 0.1)
    jitter: Annotated[Jitter, Or(-1)] = -1.0
    # source of all randomness
    seed: NotNegative = 1
    # folder of processed_data{obs_size}.hdf5 and env_cfg.json
    out: str = ""
    # cameras to store; [] stores states only
    cameras: list[str] = field(default_factory=lambda: ["agentview", "robot0_eye_in_hand"])
    # pixels at which images are drawn
    image_size: PictureSize = 224
    # pixels of the stored images
    obs_size: PictureSize = 96
    # faithful or fast (docs/environments.md)
    render_quality: Literal["faithful", "fast"] = "faithful"
    # time limit in control steps (-1: the task's)
    episode_length: Annotated[EpisodeLength, Or(-1)] = -1
    # workers (-1: one per core, or per CPU of the cluster; 0: this process)
    workers: Annotated[int, Between(-1, 256)] = -1
    # where workers are: process (of this machine) or ray (actors of a Ray cluster, that of
    # RAY_ADDRESS)
    engine: Literal["process", "ray"] = "process"
    # give up when more than this share of at least 20 episodes fails
    max_failure_rate: Share = 0.95
    # replace an existing dataset and the remains of an unfinished run
    overwrite: Flag = 0

    def __post_init__(self) -> None:
        if self.task not in EXPERTS:
            raise ValueError(f"task: '{self.task}', expected one of {', '.join(EXPERTS)}")
        if self.jitter == -1:
            self.jitter = Noise.of(self.noise).jitter
        if self.episode_length == -1:
            self.episode_length = TASKS[self.task].horizon
        self.num_workers  # noqa: B018 - refuses what does not go together

    @property
    def settings(self) -> Settings:
        """The settings that determine each attempt."""
        return Settings(**{f.name: getattr(self, f.name) for f in fields(Settings)})

    @property
    def file(self) -> Path:
        return Path(self.out) / f"processed_data{self.obs_size}.hdf5"

    @property
    def num_workers(self) -> int:
        return crew_size(self.workers, self.num, self.engine, "workers")


def _env_args(cfg: MainConfig) -> dict[str, Any]:
    args = cfg.settings.env_args()
    args["expert"] |= {"seed": cfg.seed, "num": cfg.num}
    return args


def _run(cfg: MainConfig) -> DemoRun:
    return DemoRun(
        file=cfg.file,
        settings=cfg.settings,
        env_args=_env_args(cfg),
        seed=cfg.seed,
        num=cfg.num,
        workers=cfg.num_workers,
        title=cfg.task,
        details=(
            f" within episode_length {cfg.episode_length} "
            f"(noise {cfg.noise:g}, jitter {cfg.jitter:g})"
        ),
        overwrite=bool(cfg.overwrite),
        max_failure_rate=cfg.max_failure_rate,
        engine=cfg.engine,
    )


def generate(cfg: MainConfig) -> Path:
    """Record ``num`` successes, continuing an unfinished run; returns the dataset file.

    Raises the errors of ``DemoRun.record``, and ConfigError without a folder.
    """
    output_folder(cfg.out, "out", "a folder, such as release/data/robomimic/can")
    _run(cfg).record()
    return cfg.file


def main() -> int:
    """Entry point: parse, record, exit status 0."""
    cfg = run_config.parse(MainConfig)
    with kept_reported(lambda: _run(cfg).kept() if cfg.out else ""):
        generate(cfg)
    return 0


if __name__ == "__main__":
    sys.exit(run_program(main))
