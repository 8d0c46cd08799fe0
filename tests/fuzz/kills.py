"""Runs of both training programs that are killed, resumed, killed again, and must end the same."""

from __future__ import annotations

import functools
import importlib
import json
import math
import os
import random
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py

import train_bc
import train_rl
from common_utils.errors import USER_ERROR
from env.config import EnvConfig
from env.factory import env_args
from tests.bc.ibc_data import write_particle
from tests.fuzz.case import Outcome, Verdict
from tests.fuzz.killed import Attempt, How, Kill, attempt, only_one_thread
from tests.fuzz.same_run import differences

KIND = "kills"
# in memory: a kill loses nothing that was written, forced to disk or not
SCRATCH = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
PROGRAMS = {"train_bc": train_bc, "train_rl": train_rl}
BC: dict[str, Any] = {
    "dataset.use_state": 1, "dataset.action_low": "[0]", "dataset.action_high": "[1]",
    "dataset.eval_episode_len": 20, "env.suite": "particle", "env.task": "PARTICLE_2d",
    "env.episode_length": 8, "epoch_len": 3, "num_epoch": 2, "batch_size": 4,
    "num_eval_episode": 1, "num_final_episode": 1, "device": "cpu",
}  # fmt: skip
RL: dict[str, Any] = {
    # within 2 of a goal is everywhere: each episode succeeds, at its end
    "suite": "particle", "task_name": "PARTICLE_2d", "use_state": 1, "episode_length": 6,
    "goal_tolerance": 2, "num_train_step": 10, "log_per_step": 5, "num_warm_up_episode": 2,
    "num_eval_episode": 1, "batch_size": 4, "nstep": 3, "replay_buffer_size": 8,
    "q_agent.state_actor.hidden_dim": 8, "q_agent.state_critic.hidden_dim": 8,
    "q_agent.device": "cpu", "preload_num_data": 3, "dataset.action_low": "[0]",
    "dataset.action_high": "[1]",
}  # fmt: skip
RUNS: dict[str, tuple[str, dict[str, Any]]] = {
    "bc": ("train_bc", {
        **BC, "policy_type": "state", "state_policy.hidden_dim": 8, "ema": 0.9, "save_per": 1,
    }),
    "ibc": ("train_bc", {
        **BC, "policy_type": "ebm", "ebm.num_action_samples": 8, "ebm.net.width": 8,
        "ebm.num_counter_examples": 4, "ebm.langevin.num_iterations": 2,
    }),
    "ibrl": ("train_rl", {
        **RL, "bc_policy": "BC", "q_agent.act_method": "ibrl", "mix_rl_rate": 0.5,
        "save_per_success": 1,
    }),
    "rft": ("train_rl", {
        **RL, "q_agent.act_method": "rl", "pretrain_num_epoch": 2, "pretrain_epoch_len": 3,
        "pretrain_only": 0, "add_bc_loss": 1, "q_agent.norm_state": 1,
    }),
}  # fmt: skip


@dataclass(frozen=True)
class KilledRun:
    """A run, where its attempts are killed, and which of them replace what is there."""

    run_name: str
    kills: tuple[Kill, ...]
    anew: tuple[bool, ...]

    @property
    def name(self) -> str:
        ends = ((k, " anew" if new else "") for k, new in zip(self.kills, self.anew, strict=True))
        return f"{self.run_name}: " + ", ".join(f"{kill}{new}" for kill, new in ends)

    def run(self) -> Outcome:
        with tempfile.TemporaryDirectory(prefix="fuzz_", dir=SCRATCH) as folder:
            return self._run(Path(folder))

    def _run(self, folder: Path) -> Outcome:
        killed, replaced = 0, False
        for number, kill in enumerate((*self.kills, None)):
            replaces = kill is not None and self.anew[number]
            end = self._attempt(folder, kill, replaces, first=number == 0)
            if end.status == USER_ERROR and replaced and not replaces:
                # half of the run before was removed, and what is left is rightly refused
                end = self._attempt(folder, None, True, first=False)
            replaced = replaces and end.status is None
            killed += end.status is None
            if end.status:
                said = f"attempt {number + 1} ended with {end.status}: {end.said.strip()[-1500:]}"
                return self._outcome(Verdict.TRACEBACK, said, killed)
        found = differences(folder / "run", whole_run(self.run_name)[0])
        verdict = Verdict.SILENT if found else Verdict.ACCEPTED
        return self._outcome(verdict, "; ".join(found), killed)

    def _outcome(self, verdict: Verdict, detail: str, killed: int) -> Outcome:
        return Outcome(verdict, detail, {"kills": killed, f"kills of {self.run_name}": killed})

    def _attempt(self, folder: Path, kill: Kill | None, replaces: bool, *, first: bool) -> Attempt:
        way = {} if first else {"overwrite": 1} if replaces else {"resume": 1}
        return start(self.run_name, folder, way, kill)


def start(run_name: str, folder: Path, more: dict[str, Any], kill: Kill | None) -> Attempt:
    """One attempt in ``folder / "run"``."""
    program, own = RUNS[run_name]
    values = {**own, **more, "save_dir": folder / "run"}
    values["dataset.path" if program == "train_bc" else "preload_datapath"] = demonstrations()
    if "bc_policy" in values:
        values["bc_policy"] = whole_run("bc")[0] / "model0.pt"
    options = [f"--{key}={value}" for key, value in values.items()]
    whole = whole_run(run_name)[1] if kill is not None else None
    return attempt(PROGRAMS[program], options, folder / "said", kill, whole)


@functools.cache
def _home() -> tempfile.TemporaryDirectory[str]:
    """Of the unkilled runs, until this process ends."""
    return tempfile.TemporaryDirectory(prefix="fuzz_", dir=SCRATCH)


@functools.cache
def demonstrations() -> Path:
    path = write_particle(Path(_home().name) / "particle.hdf5")
    cfg = EnvConfig(suite="particle", task="PARTICLE_2d", use_state=1)
    with h5py.File(path, "r+") as file:
        file["data"].attrs["env_args"] = json.dumps(env_args(cfg))
        for demo in file["data"].values():
            demo["rewards"][-1] = 1
    return path


@functools.cache
def whole_run(name: str) -> tuple[Path, Attempt]:
    """The folder of a run without a kill, and how it went."""
    folder = Path(_home().name) / name
    folder.mkdir()
    end = start(name, folder, {}, None)
    if end.status:
        raise RuntimeError(f"{name}: {end.said}")
    return folder / "run", end


def prepare() -> None:
    """The runs to compare with, each in a child of its own: this process stays without threads."""
    for module in ("torch._dynamo", "torch.utils.tensorboard", "env.particle.env"):
        importlib.import_module(module)  # or each child would
    only_one_thread()
    for name in RUNS:
        whole_run(name)


def cases(rng: random.Random) -> Iterator[KilledRun]:
    """One to four kills, the later ones more often early: a resumed run is shorter."""
    while True:
        number = rng.randint(1, 4)
        kills = tuple(_kill(rng, 1 if n == 0 else 3) for n in range(number))
        anew = tuple(n > 0 and rng.random() < 0.15 for n in range(number))
        yield KilledRun(rng.choice(sorted(RUNS)), kills, anew)


HOW: tuple[How, ...] = ("before", "after", "write", "write", "time")


def _kill(rng: random.Random, power: int) -> Kill:
    how = rng.choice(HOW)
    size = int(math.exp(rng.uniform(0, math.log(15_000)))) if how == "write" else 0
    return Kill(how, rng.random() ** power, size)
