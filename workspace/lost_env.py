"""What an RL run does when its environment, which is somewhere else, is lost.

A step that was lost is never stored: neither is the episode that it belongs to, unless the
environment could be brought back to the same step (``Env.replayable``). So no transition
leads from before a gap to after it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from common_utils.logger import RunLogger
from common_utils.run_state import GracefulStop
from common_utils.specs import Obs
from env.core import Env, EnvGone
from evaluate.multi_process_eval import EvalPool
from rl.replay import ReplayBuffer


class Run(Protocol):
    """The part of ``train_rl.Workspace`` that is used here."""

    env: Env
    eval_pool: EvalPool
    replay: ReplayBuffer
    log: RunLogger
    stop: GracefulStop | None
    obs: Obs
    env_episode: int
    episode_len: int
    episode_success: bool
    reported: bool

    @property
    def steps_done(self) -> int:
        """Environment steps."""

    def save_state(self) -> None:
        """Save a state that the run can resume from."""


def listen(run: Run) -> None:
    """What the environments say is logged, and a signal ends their waiting."""

    def go_on() -> None:
        if run.stop is not None and run.stop.requested:
            raise EnvGone(f"{run.stop.signal_name} while waiting for the environment")

    run.env.say = run.eval_pool.say = run.log.print
    run.env.on_wait = go_on


def drop_episode(run: Run, why: str) -> None:
    """Forget the running episode, if there is one; the next one begins with a reset."""
    if run.replay.is_running:
        run.replay.drop_episode()
        run.env_episode += 1
        run.log.print(f"note: {run.episode_len} steps of an episode are dropped: {why}")
    run.episode_len, run.episode_success, run.obs = 0, False, {}


@contextmanager
def saved_when_gone(run: Run) -> Iterator[None]:
    """If the environment is gone, save a state without the running episode, and say so."""
    try:
        yield
    except EnvGone as error:
        if run.reported:  # else this happened in an evaluation, before which a state was saved
            drop_episode(run, "the environment is gone")
            run.save_state()
        raise EnvGone(
            f"{error}; step {run.steps_done}: state saved; the same command with --resume 1 "
            "continues"
        ) from error
