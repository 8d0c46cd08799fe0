"""Collect demonstrations from the experts of the particle, block pushing and your own suites.

    python -m tools.collect_oracle --task PUSH --num 2000 --replicas 10 --out release/data/ibc/push
    python -m tools.collect_oracle --task PARTICLE_2d --num 2000 --out release/data/ibc/particle_2d

Writes ``dataset.hdf5`` and ``env_cfg.json`` into the folder ``--out``, actions in [-1, 1].
``--suite`` names the suite of any other task (docs/extending.md). The defaults are those of the
published datasets: failed episodes are kept, and each episode ends with a boundary row (the
terminal observation and the oracle's action there, which was not played). To continue an
interrupted run, run the same command again. The file depends only on the options, not on the
replicas or interruptions.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import h5py
import numpy as np

from common_utils import run_config
from common_utils.demo_file import FILE_NAME, Recording
from common_utils.errors import run_program
from common_utils.finite import check_observed
from common_utils.progress import console
from common_utils.ranges import Between, NotNegative, NotNegativeNumber, PictureSize, Positive
from common_utils.run_config import Flag
from common_utils.run_folder import output_folder
from env.config import EnvConfig
from env.core import Env, EnvError
from env.experts import make_expert
from env.factory import make_env, suite_class
from env.suites import AnySuite, suite_by_task
from evaluate.stats import wilson
from evaluate.video import annotate, write_video
from tools.recording import DemoRun, Job, Outcome, crew_size, kept_reported, store_part

# a time limit that is never reached: the task has its own
NO_LIMIT = 10**6
FIRST, MID, LAST = 0, 1, 2  # a row's place in its episode, as in the published recordings


# options that only some suites take (``Env.oracle_options``)
NOT_FOR_ALL = (
    "wait_at_first_goal", "random_order", "hide_velocity", "use_image_obs", "shared_memory", "wait",
)  # fmt: skip


@dataclass(frozen=True)
class Settings:
    """Plain data that determines an episode and how much of it is stored."""

    MAKER: ClassVar[str] = "tools.collect_oracle:make_recorder"

    task: str
    suite: str
    noise: float = 0.0
    successes_only: bool = False
    boundary_rows: bool = True
    goal_tolerance: float = 0.0
    oracle: dict[str, Any] = field(default_factory=dict)
    hide_velocity: bool = False
    images: bool = False
    image_size: int = 240
    render_quality: str = "faithful"
    shared_memory: bool = False
    video_dir: str = ""
    num_videos: int = 0

    @property
    def timeout(self) -> float:
        """Seconds an episode may take."""
        return 300.0 + 300.0 * self.images

    def env_cfg(self) -> EnvConfig:
        """The environment in which the oracle plays."""
        return EnvConfig(
            suite=self.suite,
            task=self.task,
            cameras=["rgb"] if self.images else [],
            rl_image_size=self.image_size,
            image_size=self.image_size,
            use_state=1,
            episode_length=NO_LIMIT,
            goal_tolerance=self.goal_tolerance,
            hide_velocity=int(self.hide_velocity),
            render_quality="fast" if self.render_quality == "fast" else "faithful",
            shared_memory=int(self.shared_memory),
        )

    def recorder(self) -> Recorder:
        """A recorder in this process."""
        return Recorder(self)


class Recorder:
    """Plays episodes of one task; a worker process holds one."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.env: Env = make_env(settings.env_cfg())
        self.oracle = make_expert(self.env, settings.noise, **settings.oracle)
        self.spec = self.env.spec
        if "state" not in self.spec.observations:
            raise EnvError(
                f"suite '{self.spec.suite}' delivers {', '.join(self.spec.observations)}; "
                "expected 'state', which expert demonstrations need"
            )

    def attempt(self, job: Job) -> Outcome:
        """Play one episode; store it unless it failed and only successes are kept."""
        settings, recording = self.settings, Recording()
        frames: list[np.ndarray] = []
        filming = job.number < settings.num_videos
        task = self.spec.task
        obs, info = self.env.reset(seed=job.env_seed)
        self.oracle.reset(np.random.default_rng(job.expert_seed))
        ended = False
        while not ended:
            if filming:
                frames.append(annotate(self.env.render(), f"seed {job.env_seed}"))
            action, before = self.oracle.act(), obs
            obs, reward, terminated, truncated, info = self.env.step(action)
            check_observed(task, job.env_seed, len(recording) + 1, obs, reward)
            recording.append(before, before["state"], action, reward)
            ended = terminated or truncated
        success, played = bool(info["success"]), len(recording)
        if settings.boundary_rows:
            recording.append(obs, obs["state"], self.oracle.act(), 0.0)
        kept = bool(job.part) and (
            self._achieved(success, recording) or not settings.successes_only
        )
        if kept:
            self._store(recording, played, success, job)
        if filming:
            frames.append(annotate(self.env.render(), f"seed {job.env_seed}", success))
            outcome = "success" if success else "failure"
            write_video(
                Path(settings.video_dir) / f"{job.number:04d}_{outcome}.mp4",
                frames,
                round(self.env.control_hz),
            )
        return Outcome(success, played, self.oracle.phase, kept)

    def _achieved(self, success: bool, recording: Recording) -> bool:
        return success or (self.env.achieved_by_reward and any(recording.rewards))

    def _store(self, recording: Recording, played: int, success: bool, job: Job) -> None:
        attrs = {"seed": job.env_seed, "expert_seed": job.expert_seed, "success": success}
        rows = np.full(len(recording), MID, np.uint8)
        rows[0] = FIRST
        if self.settings.boundary_rows:
            rows[played:] = LAST
        cameras = list(self.spec.cameras)
        store_part(recording, job, cameras, attrs, {"step_type": rows})

    def close(self) -> None:
        """Free the simulator."""
        self.env.close()


def make_recorder(settings: Mapping[str, Any]) -> Recorder:
    """The recorder of a worker process, built from the settings it receives."""
    return Recorder(Settings(**settings))


@dataclass
class MainConfig:
    """What to collect, and where."""

    # PARTICLE_{N}d, PUSH, REACH, INSERT, PUSH_DISCONTINUOUS, PUSH_MULTIMODAL, PUSH_NORMALIZED, ...
    task: str = "PUSH"
    # total number of episodes
    num: Positive = 2000
    # workers (-1: one per core, or per CPU of the cluster; 0: this process)
    replicas: Annotated[int, Between(-1, 256)] = -1
    # where workers are: process (of this machine) or ray (actors of a Ray cluster, that of
    # RAY_ADDRESS)
    engine: Literal["process", "ray"] = "process"
    # folder of dataset.hdf5 and env_cfg.json
    out: str = ""
    # source of all randomness
    seed: NotNegative = 0
    # the suite of a task that is neither the particle's nor block pushing's
    suite: AnySuite = ""
    # standard deviation of Gaussian noise on the oracle's actions, in native units (block
    # pushing: metres)
    noise: NotNegativeNumber = 0.0
    # 1: leave out failed episodes
    save_successes_only: Flag = 0
    # 1: end each episode with its terminal observation and the oracle's action there
    boundary_rows: Flag = 1
    # distance at which a goal counts as reached (0: the task's own)
    goal_tolerance: NotNegativeNumber = 0.0
    # particle: control steps to stay near the first goal before moving to the second
    wait_at_first_goal: Positive = 1
    # particle: visit the goals in a random order
    random_order: Flag = 0
    # particle: leave the velocity out of the state
    hide_velocity: Flag = 0
    # PUSH_DISCONTINUOUS: control steps to stand still at the first target
    wait: NotNegative = 0
    # block pushing: also store the camera's pictures
    use_image_obs: Flag = 0
    # height of stored pictures and videos in pixels; the width is 4/3 of it
    image_size: PictureSize = 240
    # faithful or fast (docs/environments.md)
    render_quality: Literal["faithful", "fast"] = "faithful"
    # block pushing: play in a running pybullet server, which shows the scene
    # (python -m pybullet_utils.runServer); needs --replicas 0
    shared_memory: Flag = 0
    # number of episodes, from the first, whose MP4 is written into OUT/videos
    num_videos: NotNegative = 0
    # replace an existing dataset and the remains of an unfinished run
    overwrite: Flag = 0

    def __post_init__(self) -> None:
        if self.shared_memory and self.replicas > 0:
            raise ValueError(
                f"shared_memory: 1 shows a single scene, expected replicas 0, got {self.replicas}"
            )
        self.workers  # noqa: B018 - refuses what does not go together
        defaults = {f.name: f.default for f in fields(type(self))}
        set_here = [name for name in NOT_FOR_ALL if getattr(self, name) != defaults[name]]
        for name in set_here:
            if name not in self.taken:
                raise ValueError(
                    f"{name}: {getattr(self, name)} does not apply to task {self.task}, expected "
                    f"{defaults[name]!r}"
                )

    @property
    def suite_name(self) -> str:
        """The suite, named or implied by the task."""
        return self.suite or suite_by_task(self.task)

    @property
    def taken(self) -> tuple[str, ...]:
        """Which of the options NOT_FOR_ALL fit the task."""
        return suite_class(self.suite_name).oracle_options(self.task)

    @property
    def oracle_options(self) -> dict[str, Any]:
        """The oracle's options, apart from the noise."""
        options = {
            "wait_at_first_goal": self.wait_at_first_goal,
            "random_order": bool(self.random_order),
            "wait": self.wait,
        }
        return {name: value for name, value in options.items() if name in self.taken}

    @property
    def settings(self) -> Settings:
        """What determines the episodes."""
        return Settings(
            task=self.task,
            suite=self.suite_name,
            noise=self.noise,
            successes_only=bool(self.save_successes_only),
            boundary_rows=bool(self.boundary_rows),
            goal_tolerance=self.goal_tolerance,
            oracle=self.oracle_options,
            hide_velocity=bool(self.hide_velocity),
            images=bool(self.use_image_obs),
            image_size=self.image_size,
            render_quality=self.render_quality,
            shared_memory=bool(self.shared_memory),
            video_dir=str(Path(self.out) / "videos"),
            num_videos=self.num_videos,
        )

    @property
    def workers(self) -> int:
        """Workers to start."""
        asked = 0 if self.shared_memory else self.replicas
        return crew_size(asked, self.num, self.engine, "replicas")


def _run(cfg: MainConfig, task: str) -> DemoRun:
    settings = cfg.settings
    env_cfg, usual = asdict(settings.env_cfg()), asdict(EnvConfig())
    kwargs = {k: v for k, v in env_cfg.items() if v != usual[k]}
    for name in ("suite", "task", "episode_length", "shared_memory"):
        kwargs.pop(name, None)  # stored elsewhere, or without effect
    expert = {
        "noise": cfg.noise,
        "options": cfg.oracle_options,
        "successes_only": cfg.save_successes_only,
        "boundary_rows": cfg.boundary_rows,
        "seed": cfg.seed,
        "num": cfg.num,
    }
    return DemoRun(
        file=Path(cfg.out) / FILE_NAME,
        settings=settings,
        env_args={
            "suite": settings.suite,
            "env_name": task,
            "env_kwargs": kwargs,
            "expert": expert,
        },
        seed=cfg.seed,
        num=cfg.num,
        workers=cfg.workers,
        title=task,
        details=f" (noise {cfg.noise:g})",
        overwrite=bool(cfg.overwrite),
        engine=cfg.engine,
    )


def collect(cfg: MainConfig) -> Path:
    """Collect ``num`` episodes, continuing an unfinished run; returns the dataset file.

    Raises the errors of ``DemoRun.record``, ConfigError without a folder, and EnvError for an
    unknown task or a missing simulator.
    """
    output_folder(cfg.out, "out", "a folder, such as release/data/ibc/push")
    # report a wrong task, a missing simulator or expert now
    recorder = cfg.settings.recorder()
    task = recorder.spec.task
    recorder.close()
    run = _run(cfg, task)
    if run.record() is not None:
        with h5py.File(run.file, "r") as file:
            wins = sum(bool(demo.attrs["success"]) for demo in file["data"].values())
        console().print(f"success of the stored episodes: {wilson(wins, cfg.num)}")
    return run.file


def main() -> int:
    """Entry point: parse, collect, exit status 0."""
    cfg = run_config.parse(MainConfig)
    with kept_reported(lambda: _run(cfg, cfg.task).kept() if cfg.out else ""):
        collect(cfg)
    return 0


if __name__ == "__main__":
    sys.exit(run_program(main))
