"""Scripted robosuite episodes, played and recorded by worker processes.

``generate_demos`` and ``expert_report`` use it. An attempt is one episode; what happens in it
follows from the settings and its two seeds alone, whichever process plays it.
"""

from __future__ import annotations

import errno
import io
import time
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass, field
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import h5py

from common_utils.atomic import atomic_write
from common_utils.demo_file import Recording, write_demo
from env.core import EnvError
from env.factory import EnvConfig
from env.remote import WorkerProcess
from env.robomimic_args import robomimic_env_args
from env.robosuite_control import Noise
from env.robosuite_experts import make_expert
from env.robosuite_sim import task_named
from env.robosuite_wrapper import RobosuiteEnv

PART_GROUP = "demo"  # the one group of a part file
_FULL = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "the file size limit is reached",
}


@dataclass(frozen=True)
class Settings:
    """What decides how an attempt goes and what is stored of it; plain data."""

    task: str
    noise: float
    jitter: float
    episode_length: int
    cameras: list[str] = field(default_factory=list)
    image_size: int = 224
    obs_size: int = 96
    render_quality: str = "faithful"

    def env_args(self) -> dict[str, Any]:
        """robomimic's description of the environment, with what made the demonstrations."""
        args = robomimic_env_args(self.task, self.cameras, self.obs_size)
        if self.cameras:
            args["env_kwargs"]["render_quality"] = self.render_quality
        return args | {"expert": {"noise": self.noise, "jitter": self.jitter}}


@dataclass(frozen=True)
class Job:
    """An attempt to play; a successful one is stored in ``part`` unless that is empty."""

    number: int
    env_seed: int
    expert_seed: int
    part: str = ""


@dataclass(frozen=True)
class Outcome:
    """How an attempt went: success, control steps, and where it ended (the expert's phase)."""

    success: bool
    length: int
    phase: str


class Recorder:
    """Plays attempts in one environment; a worker process holds one."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.noise = Noise(settings.noise, settings.jitter)
        self.env = RobosuiteEnv(
            EnvConfig(
                suite="robosuite",
                task=settings.task,
                cameras=list(settings.cameras),
                image_size=settings.image_size,
                rl_image_size=settings.obs_size,
                episode_length=settings.episode_length,
                render_quality="fast" if settings.render_quality == "fast" else "faithful",
                record_sim_state=1,
            )
        )
        self.spec = self.env.spec

    def attempt(self, job: Job) -> Outcome:
        """Play one episode and, where it succeeds, store it. Raises EnvError on a full disk."""
        recording = Recording()
        env, cameras = self.env, self.settings.cameras
        obs, info = env.reset(seed=job.env_seed)
        expert = make_expert(self.settings.task, env.sim, job.expert_seed, self.noise)
        ended = success = False
        while not ended:
            action = expert.act()
            before = {c: obs[c] for c in cameras} | env.raw_obs
            state = info["sim_state"]
            obs, reward, terminated, truncated, info = env.step(action)
            recording.append(before, state, action, reward)
            success, ended = bool(info["success"]), terminated or truncated
        if success and job.part:
            self._store(recording, job)
        return Outcome(success, len(recording), getattr(expert, "phase", ""))

    def _store(self, recording: Recording, job: Job) -> None:
        attrs = {
            "model_file": self.env.sim.sim.model.get_xml(),
            "seed": job.env_seed,
            "expert_seed": job.expert_seed,
            "attempt": job.number,
        }
        # through memory: on a full disk plain writes tell what is wrong, HDF5's do not
        buffer = io.BytesIO()
        with h5py.File(buffer, "w") as file:
            write_demo(file.create_group(PART_GROUP), recording, self.settings.cameras, attrs)
        with disk_told(job.part), atomic_write(job.part, "wb") as handle:
            handle.write(buffer.getbuffer())

    def close(self) -> None:
        """Free the simulator."""
        self.env.close()


class disk_told:
    """Context in which a full disk raises EnvError saying so, with the file's name."""

    def __init__(self, path: str | Path) -> None:
        self.path = path

    def __enter__(self) -> None:
        pass

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if not isinstance(error, (OSError, RuntimeError)):
            return
        for code, what in _FULL.items():
            # h5py has no errno of its own, it quotes the system's
            if getattr(error, "errno", None) == code or f"errno = {code}," in str(error):
                raise EnvError(f"{what} while writing '{self.path}'") from error


def make_recorder(settings: Mapping[str, Any]) -> Recorder:
    """What a worker process makes of the settings it is sent."""
    return Recorder(Settings(**settings))


class _Player(WorkerProcess):
    """A worker and the job it plays."""

    job: Job | None = None

    def give(self, job: Job) -> None:
        self.job, self.what = job, f"playing attempt {job.number} (seed {job.env_seed})"
        self.send(("call", "attempt", (job,), {}))


def play(
    settings: Settings, jobs: Iterable[Job], workers: int
) -> Generator[tuple[Job, Outcome], None, None]:
    """Play ``jobs``, yielding each when it is done (with workers: in any order).

    Jobs are drawn when a worker is free; stop by closing the generator, which ends the
    workers. ``workers`` 0 plays in this process. Raises EnvError when a worker dies, fails,
    hangs or meets a full disk.
    """
    task_named(settings.task)
    if workers == 0:
        recorder = Recorder(settings)
        with closing(recorder):
            for job in jobs:
                yield job, recorder.attempt(job)
        return
    timeout = 120 + settings.episode_length * (1 + 2 * len(settings.cameras))
    players = [_Player(f"recording worker {i}", timeout, EnvError) for i in range(workers)]
    try:
        yield from _play(players, settings, iter(jobs))
    finally:
        for player in players:
            player.kill()


def _play(
    players: list[_Player], settings: Settings, jobs: Iterator[Job]
) -> Iterator[tuple[Job, Outcome]]:
    for player in players:
        player.build("tools.demo_recorder:make_recorder", asdict(settings))
    busy = {player.conn: player for player in players}
    while busy:
        slowest = min(busy.values(), key=lambda p: p.deadline)
        ready = wait(list(busy), timeout=max(0.0, slowest.deadline - time.monotonic()))
        for conn in ready or [slowest.conn]:
            player = busy[conn]  # type: ignore[index]
            kind, answer = player.receive()[:2]
            if kind == "misuse":
                raise EnvError(answer)
            if player.job is not None:
                yield player.job, answer
            job = next(jobs, None)
            if job is None:
                del busy[player.conn]
            else:
                player.give(job)
