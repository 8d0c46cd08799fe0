"""Evaluation by worker processes: one by :func:`run_eval_mp`, several by an :class:`EvalPool`.

Workers step environments; this process does all policy inference, over whatever observations
are ready. Games are handed out one seed at a time, so any number of games and workers works,
and every game is the same episode that :func:`evaluate.rollout.run_eval` plays.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common_utils.finite import check_action
from common_utils.lookup import resolve
from common_utils.specs import EnvSpec, Player
from env.core import Env, EnvError
from env.factory import suite_class
from env.remote import DEFAULT_MAKER, WorkerProcess
from evaluate.recording import Recordings
from evaluate.rollout import (
    Episode,
    EvalError,
    EvalResult,
    Forecast,
    PolicyRunner,
    check_games,
    evaluating,
    print_episode,
    run_eval,
)

# seconds to wait for workers before checking again whether to continue
PAUSE_EVERY = 0.5


def _nothing() -> None:
    """A pause that does nothing."""


def _only_one(env_cfg: Mapping[str, Any]) -> bool:
    """Whether there is one environment of this kind, which workers cannot share."""
    try:
        return suite_class(env_cfg.get("suite", "")).only_one
    except EnvError:  # an unknown suite is refused when it is made
        return False


@dataclass
class _Game:
    """The game that a busy worker plays."""

    seed: int
    generator: torch.Generator | None
    length: int = 0  # steps so far
    expected: dict[str, float] = field(default_factory=dict)  # its forecast


class _Worker(WorkerProcess):
    """A worker of the pool, and the game it plays."""

    def __init__(self, number: int, timeout: float) -> None:
        super().__init__(f"evaluation worker {number}", timeout, EvalError)
        self.game: _Game | None = None

    def take(self, action: np.ndarray) -> None:
        """Send an action to the worker; NonFiniteError if the action is not finite."""
        assert self.game is not None
        check_action(action, self.game.seed, self.game.length)
        self.game.length += 1
        self.send(("act", action))


class EvalPool:
    """Plays evaluation games; the environments live as long as the pool.

    Args:
        env_cfg: ``asdict(EnvConfig)``, or what ``maker`` takes (copied, never changed).
        num_proc: worker processes; 0 plays in this process (with one environment), and so does
            any number with a suite of which there is only one environment (``Env.only_one``).
        timeout: seconds a worker may take for one step or reset before it counts as hung.
        maker: "module:function" that builds an Env from ``env_cfg`` (importable in a worker).

    Use as a context manager, or call :meth:`close`. After an error all workers are gone, and
    the next evaluation starts new ones.
    """

    def __init__(
        self,
        env_cfg: Mapping[str, Any],
        num_proc: int,
        *,
        timeout: float = 120.0,
        maker: str = DEFAULT_MAKER,
    ) -> None:
        if num_proc < 0:
            raise ValueError(f"num_proc is {num_proc}; must be 0 (this process) or more")
        self.env_cfg = copy.deepcopy(dict(env_cfg))
        self.num_proc = 0 if maker == DEFAULT_MAKER and _only_one(self.env_cfg) else num_proc
        self.timeout = timeout
        self.maker = maker
        self._workers: list[_Worker] = []
        self._env: Env | None = None
        self._spec: EnvSpec | None = None
        self._pause = _nothing
        # what the environment in this process says goes there (None: to the console)
        self.say: Callable[[str], None] | None = None

    def __enter__(self) -> EvalPool:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    @property
    def spec(self) -> EnvSpec:
        """The environments' spec (starts them if necessary)."""
        if self.num_proc == 0:
            return self._local_env().spec
        self._start()
        assert self._spec is not None  # _start has set it
        return self._spec

    def _local_env(self) -> Env:
        if self._env is None:
            self._env = resolve(self.maker)(copy.deepcopy(self.env_cfg))
        return self._env

    def _local_env_for(self, pause: Callable[[], None]) -> Env:
        """The environment in this process, for one evaluation."""
        env = self._local_env()
        env.on_wait = pause
        if self.say is not None:
            env.say = self.say
        return env

    def _start(self) -> None:
        """Start what is missing; all workers build their environments at the same time."""
        if self._workers:
            return
        try:
            for number in range(self.num_proc):
                self._workers.append(_Worker(number, self.timeout))
            for worker in self._workers:
                worker.build(self.maker, self.env_cfg)
            waiting = list(self._workers)
            while waiting:
                for worker in self._ready(waiting):
                    self._spec = EnvSpec.from_dict(worker.receive()[1])
                    waiting.remove(worker)
        except BaseException:
            self.close()
            raise

    def _ready(self, workers: list[_Worker]) -> list[_Worker]:
        """Workers with a message, waiting for the first; EvalError if one is overdue."""
        by_conn = {w.conn: w for w in workers}
        ready: list[_Worker] = []
        while not ready:
            self._pause()
            left = min(w.deadline for w in workers) - time.monotonic()
            left = min(max(0.0, left), PAUSE_EVERY)
            ready = [by_conn[c] for c in wait(list(by_conn), timeout=left)]  # type: ignore[index]
            for worker in workers:
                if worker not in ready and worker.is_late():
                    raise EvalError(worker.overdue())
        return ready

    def run(
        self,
        agent: Player,
        num_game: int,
        seed: int,
        *,
        eval_mode: bool = True,
        one_by_one: bool = False,
        record: str | Path | None = None,
        verbose: bool = False,
        pause: Callable[[], None] = _nothing,
        recordings: Recordings | None = None,
        forecast: Forecast | None = None,
    ) -> EvalResult:
        """Play ``num_game`` episodes with seeds ``seed .. seed + num_game - 1``.

        Observations that are ready are evaluated in one forward pass, whose rounding may differ
        from single ones in the last bits; ``one_by_one`` evaluates each alone, so that scores
        equal those of ``run_eval`` exactly. Agents with ``stochastic_eval`` are always evaluated
        one by one, each game with its own generator. ``record`` and ``recordings`` need
        ``num_proc`` 0. ``pause`` is called between steps; if it raises, the evaluation ends.
        ``forecast``: as in ``run_eval``; the first observation of each game is then evaluated
        alone, so that rounding, and with it the forecast, does not depend on which workers are
        ready at the same time.

        Raises EvalError for a dead, hung or failing worker; no process is left behind.
        """
        check_games(num_game, seed)
        if self.num_proc == 0:
            return run_eval(
                self._local_env_for(pause),
                agent,
                num_game,
                seed,
                eval_mode=eval_mode,
                record=record,
                verbose=verbose,
                pause=pause,
                recordings=recordings,
                forecast=forecast,
            )
        if record is not None or recordings is not None:
            raise ValueError("recording needs num_proc 0 (mp 0)")
        runner = PolicyRunner(agent, eval_mode=eval_mode, forecast=forecast)
        self._pause = pause
        try:
            self._start()
            with evaluating(agent):
                episodes = self._play(runner, num_game, seed, one_by_one, verbose)
        except BaseException:
            self.close()  # workers still in a game would answer the next evaluation
            raise
        finally:
            self._pause = _nothing
        return EvalResult.of(episodes)

    def _play(
        self, runner: PolicyRunner, num_game: int, seed: int, one_by_one: bool, verbose: bool
    ) -> list[Episode]:
        todo = iter(range(seed, seed + num_game))
        busy: list[_Worker] = []
        episodes: list[Episode] = []
        for worker in self._workers[:num_game]:
            self._assign(worker, next(todo), runner)
            busy.append(worker)
        while busy:
            asking: list[tuple[_Worker, Any]] = []
            for worker in self._ready(busy):
                message = worker.receive()
                assert worker.game is not None
                if message[0] == "obs":
                    obs = runner.timed(message[1], worker.game.seed, worker.game.length)
                    asking.append((worker, obs))
                    continue
                score, success, length, metrics = message[1:]
                metrics = {**metrics, **worker.game.expected}
                episodes.append(Episode(worker.game.seed, score, success, length, metrics))
                if verbose:
                    print_episode(episodes[-1])
                following = next(todo, None)
                if following is None:
                    busy.remove(worker)
                else:
                    self._assign(worker, following, runner)
            self._answer(asking, runner, one_by_one)
        return episodes

    def _assign(self, worker: _Worker, seed: int, runner: PolicyRunner) -> None:
        worker.game = _Game(seed, runner.generator(seed))
        worker.what, worker.timeout = f"playing seed {seed}", self.timeout
        worker.send(("play", seed, runner.discount))

    def _answer(
        self, asking: list[tuple[_Worker, Any]], runner: PolicyRunner, one_by_one: bool
    ) -> None:
        together = []
        for worker, obs in asking:
            game = worker.game
            assert game is not None
            begins = game.length == 0 and runner.forecast is not None
            if not (one_by_one or runner.stochastic or begins):
                together.append((worker, obs))
                continue
            action = runner.act(obs, game.generator)
            if begins:
                game.expected = runner.expected(obs, action)
            worker.take(action)
        if together:
            actions = runner.act_batch([obs for _, obs in together])
            for (worker, _), action in zip(together, actions, strict=True):
                worker.take(action)

    def close(self) -> None:
        """End the workers and free the environment; safe to call twice."""
        workers, self._workers = self._workers, []
        for worker in workers:
            worker.conn.close()
        for worker in workers:
            worker.kill()
        if self._env is not None:
            self._env.close()
            self._env = None


def run_eval_mp(
    env_params: Mapping[str, Any],
    agent: Player,
    num_proc: int,
    num_game: int,
    seed: int,
    *,
    eval_mode: bool = True,
    one_by_one: bool = False,
    record: str | Path | None = None,
    verbose: bool = False,
    recordings: Recordings | None = None,
    forecast: Forecast | None = None,
) -> EvalResult:
    """One evaluation in worker processes, which end afterwards.

    Args:
        env_params: ``asdict(EnvConfig)``, as ``load_model`` returns it (never changed).
        num_proc: worker processes; any number of games goes with any number of them.

    The other arguments, the result and the errors are those of :meth:`EvalPool.run`.
    """
    with EvalPool(env_params, min(num_proc, num_game)) as pool:
        return pool.run(
            agent,
            num_game,
            seed,
            eval_mode=eval_mode,
            one_by_one=one_by_one,
            record=record,
            verbose=verbose,
            recordings=recordings,
            forecast=forecast,
        )
