"""Evaluation by workers: one by :func:`run_eval_mp`, several by an :class:`EvalPool`.

Workers step environments; this process does all policy inference, over whatever observations
are ready. Games are handed out one seed at a time, so any number of games and workers works,
and every game is the same episode that :func:`evaluate.rollout.run_eval` plays.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common_utils.finite import check_action
from common_utils.lookup import resolve
from common_utils.specs import EnvSpec, Player
from env.core import Env, EnvError
from env.crew import Crew, Member, Message
from env.factory import suite_class
from env.remote import DEFAULT_MAKER
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
    """A game that a worker plays."""

    seed: int
    generator: torch.Generator | None = None
    length: int = 0  # steps so far
    expected: dict[str, float] = field(default_factory=dict)  # its forecast

    def begin(self, runner: PolicyRunner) -> tuple[Message, str]:
        """Before its first step; the message that asks for it, and that in words."""
        self.generator, self.length, self.expected = runner.generator(self.seed), 0, {}
        return ("play", self.seed, runner.discount), f"playing seed {self.seed}"


class EvalPool:
    """Plays evaluation games; the environments live as long as the pool.

    Args:
        env_cfg: ``asdict(EnvConfig)``, or what ``maker`` takes (copied, never changed).
        num_proc: workers; 0 plays in this process (with one environment), and so does any number
            with a suite of which there is only one environment (``Env.only_one``).
        timeout: seconds a worker may take for one step or reset before it counts as hung.
        maker: "module:function" that builds an Env from ``env_cfg`` (importable in a worker).
        engine: where workers are, "process" (this machine) or "ray" (``env.remote.WORKERS``); of a
            cluster as many take part as it has CPUs.

    Use as a context manager, or call :meth:`close`. A worker that dies or hangs is replaced, and
    its game played again from its seed. After an error all workers are gone, and the next
    evaluation starts new ones.
    """

    def __init__(
        self,
        env_cfg: Mapping[str, Any],
        num_proc: int,
        *,
        timeout: float = 120.0,
        maker: str = DEFAULT_MAKER,
        engine: str = "process",
    ) -> None:
        if num_proc < 0:
            raise ValueError(f"num_proc is {num_proc}; must be 0 (this process) or more")
        self.env_cfg = copy.deepcopy(dict(env_cfg))
        self.num_proc = 0 if maker == DEFAULT_MAKER and _only_one(self.env_cfg) else num_proc
        self.timeout = timeout
        self.maker = maker
        self._crew = Crew[_Game](
            engine, self.num_proc, "evaluation worker", timeout, EvalError, maker, self.env_cfg,
            lambda line: (self.say or print)(line),
        )  # fmt: skip
        self._env: Env | None = None
        # where lines about lost workers go, and what the environment in this process says (None:
        # to the console)
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
        try:
            self._crew.fill()
            while self._crew.spec is None:
                self._crew.answers()
        except BaseException:
            self.close()
            raise
        return EnvSpec.from_dict(self._crew.spec)

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

        Raises EvalError for an environment that fails and for a game whose workers are lost three
        times; no process is left behind.
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
        try:
            self._crew.timeout = self.timeout
            self._crew.fill()
            with evaluating(agent):
                episodes = self._play(runner, num_game, seed, one_by_one, verbose, pause)
        except BaseException:
            self.close()  # workers still in a game would answer the next evaluation
            raise
        return EvalResult.of(episodes)

    def _play(
        self,
        runner: PolicyRunner,
        num_game: int,
        seed: int,
        one_by_one: bool,
        verbose: bool,
        pause: Callable[[], None],
    ) -> list[Episode]:
        games = (_Game(s) for s in range(seed, seed + num_game))
        episodes: list[Episode] = []
        while self._crew.assign(games, lambda game: game.begin(runner)):
            asking: list[tuple[Member[_Game], Any]] = []
            for member, message in self._crew.answers(pause):
                game = member.task
                assert game is not None
                if message[0] == "obs":
                    asking.append((member, runner.timed(message[1], game.seed, game.length)))
                    continue
                score, success, length, metrics = message[1:]
                metrics = {**metrics, **game.expected}
                episodes.append(Episode(game.seed, score, success, length, metrics))
                self._crew.done(member)
                if verbose:
                    print_episode(episodes[-1])
            self._answer(asking, runner, one_by_one)
        return episodes

    def _answer(
        self, asking: list[tuple[Member[_Game], Any]], runner: PolicyRunner, one_by_one: bool
    ) -> None:
        together = []
        for member, obs in asking:
            game = member.task
            assert game is not None
            begins = game.length == 0 and runner.forecast is not None
            if not (one_by_one or runner.stochastic or begins):
                together.append((member, obs))
                continue
            action = runner.act(obs, game.generator)
            if begins:
                game.expected = runner.expected(obs, action)
            self._act(member, action)
        if together:
            actions = runner.act_batch([obs for _, obs in together])
            for (member, _), action in zip(together, actions, strict=True):
                self._act(member, action)

    def _act(self, member: Member[_Game], action: np.ndarray) -> None:
        """Send an action; NonFiniteError if it is not finite."""
        assert member.task is not None
        check_action(action, member.task.seed, member.task.length)
        member.task.length += 1
        self._crew.tell(member, ("act", action))

    def close(self) -> None:
        """End the workers and free the environment; safe to call twice."""
        self._crew.close()
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
    engine: str = "process",
) -> EvalResult:
    """One evaluation in workers, which end afterwards.

    Args:
        env_params: ``asdict(EnvConfig)``, as ``load_model`` returns it (never changed).
        num_proc: workers; any number of games goes with any number of them.
        engine: where they are, as in :class:`EvalPool`.

    The other arguments, the result and the errors are those of :meth:`EvalPool.run`.
    """
    with EvalPool(env_params, min(num_proc, num_game), engine=engine) as pool:
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
