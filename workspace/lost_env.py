"""What an RL run does when its environment, which is somewhere else, is lost.

A step that was lost is never stored: neither is the episode that it belongs to, unless the
environment could be brought back to the same step (``Env.replayable``). So no transition
leads from before a gap to after it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

from common_utils.logger import RunLogger
from common_utils.run_state import GracefulStop
from common_utils.specs import EnvSpec
from env.core import EnvGone
from evaluate.multi_process_eval import EvalPool
from workspace.collector import Playing


class Opened(Protocol):
    """Environments that a run has opened, here or in the actor's process; see ``env.lanes``."""

    spec: EnvSpec
    notes: Sequence[str]

    def listen(self, say: Callable[[str], None], on_wait: Callable[[], None]) -> None:
        """See ``env.lanes.Lanes``."""

    def close(self) -> None:
        """See ``env.lanes.Lanes``."""


class Run(Protocol):
    """The part of ``train_rl.Workspace`` that is used here."""

    envs: Opened
    eval_pool: EvalPool
    play: Playing
    log: RunLogger
    stop: GracefulStop | None
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

    run.eval_pool.say = run.log.print
    run.envs.listen(run.log.print, go_on)


def tell_dropped(log: RunLogger, lengths: Sequence[int], why: str) -> None:
    """Say that episodes of so many steps were dropped."""
    for length in lengths:
        log.print(f"note: {length} steps of an episode are dropped: {why}")


@contextmanager
def saved_when_gone(run: Run) -> Iterator[None]:
    """If the environment is gone, save a state without the running episodes, and say so."""
    try:
        yield
    except EnvGone as error:
        if run.reported:  # else this happened in an evaluation, before which a state was saved
            tell_dropped(run.log, run.play.drop(), "the environment is gone")
            run.save_state()
        raise EnvGone(
            f"{error}; step {run.steps_done}: state saved; the same command with --resume 1 "
            "continues"
        ) from error
