"""``--dry_run 1``: everything is built, a few real steps are timed, nothing is written."""

from __future__ import annotations

import math
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from common_utils.ibrl_utils import count_parameters, eval_mode
from common_utils.logger import MultiCounter
from common_utils.progress import format_seconds
from common_utils.resources import format_bytes
from common_utils.run_config import ConfigError
from common_utils.specs import Obs, Player
from common_utils.stopwatch import Stopwatch
from env.config import EnvConfig
from env.core import Env
from env.factory import make_env
from env.lanes import LocalLane
from evaluate.rollout import PolicyRunner, evaluating
from rl.agent import Agent
from rl.replay import ReplayBuffer
from rl.successes import SuccessWriter
from workspace.collector import Choose, Playing
from workspace.network_memory import Footprint
from workspace.prepare_rl import check_storage
from workspace.rl_config import MainConfig as RlConfig

SECONDS = 4.0  # of each measurement, at least
MOST_STEPS = 200  # and at most
SEED = 10**6  # of the episode that is played


class Unwritten:
    """In the place of a run's log: its numbers go nowhere."""

    def __init__(self) -> None:
        self.meters = MultiCounter()

    def print(self, line: str) -> None:
        """A line for the console."""
        print(line)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Nothing was written that could continue."""


def no_log() -> Any:
    """See :class:`Unwritten`."""
    return Unwritten()


def refuse_resume(cfg: Any) -> None:
    """Raise ConfigError with ``resume``: a run that is continued has shown what it costs."""
    if cfg.resume:
        raise ConfigError("dry_run: 1, expected 0 with resume 1")


def parameters(model: nn.Module) -> str:
    """How many parameters a model trains, in words."""
    parts = {name: count_parameters(part) for name, part in model.named_children()}
    shown = ", ".join(f"{name} {num:,}" for name, num in parts.items() if num)
    return f"{type(model).__name__}: {count_parameters(model):,} parameters ({shown})"


def seconds_per_call(step: Callable[[], object], least: int = 1) -> float:
    """Seconds of one of several calls, after ``least`` that are not counted."""
    for _ in range(least):
        step()
    started, done = time.perf_counter(), 0
    while done < least or (time.perf_counter() - started < SECONDS and done < MOST_STEPS):
        step()
        done += 1
    return (time.perf_counter() - started) / done


def seconds_per_game_step(env: Env, player: Player) -> float:
    """Seconds in which the player acts once and the environment takes a step."""
    runner = PolicyRunner(player)
    generator = runner.generator(SEED)
    obs, _ = env.reset(seed=SEED)

    def step() -> None:
        nonlocal obs
        obs, _, terminated, truncated, _ = env.step(runner.act(obs, generator))
        if terminated or truncated:
            obs, _ = env.reset(seed=SEED)

    with evaluating(player):
        return seconds_per_call(step)


@dataclass(frozen=True)
class Stage:
    """A part of the run: how often what is done, and the seconds of one time."""

    name: str
    times: int
    seconds: float

    @property
    def total(self) -> float:
        return self.times * self.seconds


def print_stages(stages: list[Stage]) -> None:
    """How long each stage takes, and all of them."""
    for stage in stages:
        ms = 1e3 * stage.seconds
        once = f"{ms:,.0f}" if ms >= 100 else f"{ms:.3g}"
        print(f"  {stage.name}: {stage.times:,} x {once} ms = {format_seconds(stage.total)}")
    total = sum(stage.total for stage in stages)
    print(f"in all about {format_seconds(total)} ({total / 3600:,.2f} h)")


def games_at_once(mp_eval: int, workers: int) -> int:
    """How many evaluation games are played at a time, with a core for each."""
    return max(1, min(workers, os.cpu_count() or 1)) if mp_eval else 1


# ------------------------------------------------------------------------- RL


class RlRun(Protocol):
    """The part of ``train_rl.Workspace`` that is used here."""

    cfg: RlConfig
    train_env_cfg: EnvConfig
    envs: Any
    play: Playing
    agent: Agent
    replay: ReplayBuffer
    footprint: Footprint
    memory: list[str]
    log: Any
    watch: Stopwatch

    def step_env(self, choose: Choose) -> bool: ...
    def _train_one_step(self) -> None: ...


@contextmanager
def unwritten(cfg: RlConfig) -> Iterator[None]:
    """Inside the block ``cfg`` names no folder in which a replay would be made."""
    storage = cfg.replay_storage
    if storage in ("ram", "cuda"):
        yield
        return
    check_storage(storage)
    with tempfile.TemporaryDirectory(prefix=".dry_run-", dir=Path(storage).parent) as folder:
        cfg.replay_storage = folder
        try:
            yield
        finally:
            cfg.replay_storage = storage


def rehearse_rl(work: RlRun, fill: Callable[[], list[str]]) -> None:
    """Print what the run will cost; ``fill`` loads demonstrations and weights."""
    cfg = work.cfg
    work.log, work.replay.successes = no_log(), SuccessWriter(-1, None)
    lines = fill()
    print(parameters(work.agent))
    print(f"networks in training: at least {work.footprint}")
    for line in [*work.memory, *lines]:
        print(line)
    step = _training_seconds(work)
    game = _seconds_per_game_step(work)
    updates = cfg.num_critic_update / cfg.update_freq
    print(
        f"{cfg.num_train_step:,} environment steps with {updates:g} updates each, "
        f"{1 / step:.1f} per second: {work.watch.report()}"
    )
    evaluations = math.ceil(cfg.num_train_step / cfg.log_per_step)
    games = math.ceil(cfg.num_eval_episode / games_at_once(cfg.mp_eval, cfg.num_eval_worker))
    at_once = cfg.num_env if cfg.rollout == "ray" else min(cfg.num_env, os.cpu_count() or 1)
    warm_up = max(0, cfg.warm_up_target - cfg.preload_num_data)
    stages = [
        Stage("warm-up, at most", math.ceil(warm_up / at_once) * cfg.episode_length, game),
        Stage("training", cfg.num_train_step, step),
        Stage("evaluation, at most", evaluations * games * cfg.episode_length, game),
    ]
    if cfg.pretrain_num_epoch > 0:
        stages.insert(0, _pretraining(work))
        if cfg.pretrain_only:
            del stages[1:]
    print_stages([stage for stage in stages if stage.times])


def _training_seconds(work: RlRun) -> float:
    """Seconds of an environment step with its share of updates; ``work.watch`` has its parts."""
    rng = torch.Generator().manual_seed(SEED)
    width = work.envs.spec.action_dim

    def at_random(observations: Sequence[Obs]) -> Sequence[torch.Tensor]:
        return list(torch.rand(len(observations), width, generator=rng) * 2 - 1)

    with eval_mode(work.agent):
        work.play.restart()
        # an update needs transitions of an episode that has ended
        while not work.step_env(at_random):
            pass
        work.play.restart()
    period = math.lcm(work.cfg.update_freq, work.cfg.num_env)

    def steps() -> None:
        for _ in range(period):
            work._train_one_step()

    steps()  # the first compiles, allocates and measures
    work.watch.seconds.clear()
    return seconds_per_call(steps) / period


def _seconds_per_game_step(work: RlRun) -> float:
    """Of a game in this process, as evaluations without workers play it."""
    if isinstance(work.envs, LocalLane):
        return seconds_per_game_step(work.envs.env, work.agent)
    with closing(make_env(work.train_env_cfg)) as env:
        return seconds_per_game_step(env, work.agent)


def _pretraining(work: RlRun) -> Stage:
    cfg = work.cfg

    def step() -> None:
        batch = work.replay.sample_bc(cfg.batch_size, work.agent.device, work.agent.window)
        work.agent.pretrain_actor_with_bc(batch)

    total = cfg.pretrain_num_epoch * cfg.pretrain_epoch_len
    return Stage("BC pretraining", total, seconds_per_call(step))


# ------------------------------------------------------------------------- BC


class BcRun(Protocol):
    """The part of ``train_bc.Workspace`` that is used here."""

    cfg: Any
    policy: Any
    protocol: Any
    log: Any

    def _train_step(self) -> None: ...


def rehearse_bc(work: BcRun, footprint: Footprint, disk: list[str], env: Env | None) -> None:
    """Print what the run will cost; ``env``: of the evaluations, None without them."""
    cfg, policy = work.cfg, work.policy
    print(parameters(policy))
    print(f"training: at least {footprint}, in all {format_bytes(footprint.total)}")
    for line in disk:
        print(line)
    policy.train()
    step = seconds_per_call(work._train_step)
    print(f"{cfg.num_epoch} epochs of {cfg.epoch_len:,} steps, {1 / step:.1f} steps per second")
    stages = [Stage("training", cfg.num_epoch * cfg.epoch_len, step)]
    if env is not None:
        at_once = games_at_once(cfg.mp_eval, cfg.num_eval_worker)
        games = cfg.num_epoch * cfg.num_eval_episode + cfg.num_final_episode
        game = seconds_per_game_step(env, policy)
        steps = math.ceil(games / at_once) * cfg.env.episode_length
        stages.append(Stage("evaluation, at most", steps, game))
    print_stages(stages)
