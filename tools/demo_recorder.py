"""Scripted robosuite episodes, which ``tools.recording`` plays for ``generate_demos`` and
``expert_report``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from common_utils.demo_file import Recording
from common_utils.finite import check_observed
from env.config import EnvConfig
from env.experts import make_expert
from env.robosuite.env import RobosuiteEnv
from env.robosuite.robomimic_args import robomimic_env_args
from env.robosuite.sim import task_named
from tools.recording import Job, Outcome, store_part


@dataclass(frozen=True)
class Settings:
    """Plain data that determines an attempt and how much of it is stored."""

    MAKER: ClassVar[str] = "tools.demo_recorder:make_recorder"

    task: str
    noise: float
    jitter: float
    episode_length: int
    cameras: list[str] = field(default_factory=list)
    image_size: int = 224
    obs_size: int = 96
    render_quality: str = "faithful"

    @property
    def timeout(self) -> float:
        """Seconds an attempt may take."""
        return 120 + self.episode_length * (1 + 2 * len(self.cameras))

    def recorder(self) -> Recorder:
        """A recorder in this process."""
        return Recorder(self)

    def env_args(self) -> dict[str, Any]:
        """robomimic's description of the environment, plus the expert's settings."""
        args = robomimic_env_args(self.task, self.cameras, self.obs_size)
        if self.cameras:
            args["env_kwargs"]["render_quality"] = self.render_quality
        return args | {"expert": {"noise": self.noise, "jitter": self.jitter}}


class Recorder:
    """Plays attempts in one environment; a worker process holds one."""

    def __init__(self, settings: Settings) -> None:
        task_named(settings.task)
        self.settings = settings
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
        self.expert = make_expert(self.env, settings.noise, jitter=settings.jitter)
        self.spec = self.env.spec

    def attempt(self, job: Job) -> Outcome:
        """Play one episode and store it if it succeeds. Raises EnvError on a full disk."""
        recording = Recording()
        env, cameras = self.env, self.settings.cameras
        obs, info = env.reset(seed=job.env_seed)
        self.expert.reset(np.random.default_rng(job.expert_seed))
        ended = success = False
        while not ended:
            action = self.expert.act()
            before = {c: obs[c] for c in cameras} | env.raw_obs
            state = info["sim_state"]
            obs, reward, terminated, truncated, info = env.step(action)
            step = len(recording) + 1
            check_observed(self.spec.task, job.env_seed, step, obs, reward)
            recording.append(before, state, action, reward)
            success, ended = bool(info["success"]), terminated or truncated
        kept = success and bool(job.part)
        if kept:
            attrs = {
                "model_file": info["recorded"]["model_file"],
                "seed": job.env_seed,
                "expert_seed": job.expert_seed,
                "attempt": job.number,
            }
            store_part(recording, job, cameras, attrs)
        expert = self.expert
        return Outcome(success, len(recording), expert.phase, kept, expert.achieved)

    def close(self) -> None:
        """Free the simulator."""
        self.env.close()


def make_recorder(settings: Mapping[str, Any]) -> Recorder:
    """The recorder of a worker process, built from the settings it receives."""
    return Recorder(Settings(**settings))
