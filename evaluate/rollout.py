"""Plays evaluation episodes in this process.

An episode depends only on its seed: game i of an evaluation is ``env.reset(seed=seed + i)``,
and an agent that draws random numbers in eval mode (``agent.stochastic_eval``) gets a
generator seeded with it. The global generators are not changed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import torch

from common_utils.errors import UserError
from common_utils.finite import check_action, check_observed
from common_utils.ibrl_utils import eval_mode as in_eval_mode
from common_utils.seeding import preserve_rng, seed_for
from common_utils.specs import (
    CLOCK,
    DISCOUNTED_RETURN,
    START_Q,
    Decision,
    Explainer,
    Obs,
    Player,
)
from env.core import Env, EpisodeLost, ObsDict
from evaluate.recording import EpisodeRecording, Recordings
from evaluate.stats import Rate, wilson
from evaluate.video import annotate, write_video

# of a game that is lost on the way, in an environment somewhere else
MOST_TRIES = 10


class EvalError(UserError):
    """An evaluation could not be carried out; the message says which episode and why."""


class Episode(NamedTuple):
    """Outcome of one game: sum of rewards, success flag, control steps, the task's own metrics."""

    seed: int
    score: float
    success: bool
    length: int
    # info["metrics"] of the last step: final distances and the like, by name
    metrics: Mapping[str, float] = MappingProxyType({})


@dataclass(frozen=True)
class Forecast:
    """What an agent expects of an episode, to compare with what it gets.

    Each episode then has two more metrics: START_Q, the value of its first observation and action
    (unless that is None), and DISCOUNTED_RETURN, its rewards discounted by ``discount`` per step.

    value: (observation, action [A]) -> a scalar tensor; draws no random numbers.
    """

    value: Callable[[Obs, torch.Tensor], torch.Tensor | None]
    discount: float


@dataclass(frozen=True)
class EvalResult:
    """Outcomes of N games, sorted by seed: float64, bool, int64, int64, each [N].

    ``metrics`` holds the task's other measurements by name, float64 [N] each.
    """

    scores: np.ndarray
    successes: np.ndarray
    lengths: np.ndarray
    seeds: np.ndarray
    metrics: Mapping[str, np.ndarray] = field(default_factory=dict)

    @classmethod
    def of(cls, episodes: Sequence[Episode]) -> EvalResult:
        """Collect single outcomes, given in any order."""
        ordered = sorted(episodes, key=lambda e: e.seed)
        return cls(
            scores=np.array([e.score for e in ordered], np.float64),
            successes=np.array([e.success for e in ordered], bool),
            lengths=np.array([e.length for e in ordered], np.int64),
            seeds=np.array([e.seed for e in ordered], np.int64),
            metrics={
                name: np.array([e.metrics[name] for e in ordered], np.float64)
                for name in (ordered[0].metrics if ordered else ())
            },
        )

    def __len__(self) -> int:
        return len(self.seeds)

    @property
    def success_rate(self) -> float:
        """Share of successful games."""
        return float(self.successes.mean())

    @property
    def mean_score(self) -> float:
        """Mean sum of rewards."""
        return float(self.scores.mean())

    @property
    def mean_metrics(self) -> dict[str, float]:
        """Mean over the games of each of the task's metrics."""
        return {name: float(values.mean()) for name, values in self.metrics.items()}

    def rate(self, confidence: float = 0.95) -> Rate:
        """Success rate with its Wilson interval."""
        return wilson(int(self.successes.sum()), len(self), confidence)


class PolicyRunner:
    """Asks an agent for actions, one observation or several at a time.

    An agent that draws random numbers in eval mode (``stochastic_eval``) gets a generator per
    episode.
    """

    def __init__(
        self, agent: Player, *, eval_mode: bool = True, forecast: Forecast | None = None
    ) -> None:
        self.agent = agent
        self.eval_mode = eval_mode
        self.stochastic = agent.stochastic_eval
        self.forecast = forecast
        self._timed = bool(getattr(agent, "needs_clock", False))

    @property
    def discount(self) -> float | None:
        """Of the forecast; None without one."""
        return None if self.forecast is None else self.forecast.discount

    def expected(self, obs: ObsDict, action: np.ndarray) -> dict[str, float]:
        """The forecast of an episode that begins with ``obs`` and ``action`` [A], as a metric."""
        if self.forecast is None:
            return {}
        tensors = {key: torch.from_numpy(value) for key, value in obs.items()}
        value = self.forecast.value(tensors, torch.from_numpy(action))
        return {} if value is None else {START_Q: float(value)}

    def timed(self, obs: ObsDict, seed: int, step: int) -> ObsDict:
        """``obs`` of this step of the episode ``seed``; with the time, if the agent needs it."""
        return {**obs, CLOCK: np.array([seed, step])} if self._timed else obs

    def generator(self, seed: int) -> torch.Generator | None:
        """The generator of the episode ``seed``, None for a deterministic agent."""
        if not self.stochastic:
            return None
        return torch.Generator().manual_seed(seed_for(seed, "evaluation"))

    def act(self, obs: ObsDict, generator: torch.Generator | None = None) -> np.ndarray:
        """float32 [A] for one observation."""
        tensors = {key: torch.from_numpy(value) for key, value in obs.items()}
        action = self.agent.act(tensors, eval_mode=self.eval_mode, cpu=True, generator=generator)
        return _to_numpy(action, 1)

    def explain(self, obs: ObsDict, generator: torch.Generator | None = None) -> Decision:
        """The action of :meth:`act` for one observation, and its reasons if the agent says them."""
        tensors = {key: torch.from_numpy(value) for key, value in obs.items()}
        if isinstance(self.agent, Explainer):
            decision = self.agent.explain(tensors, generator=generator)
        else:
            decision = Decision(self.agent.act(tensors, generator=generator))
        return replace(decision, action=torch.from_numpy(_to_numpy(decision.action, 1)))

    def act_batch(self, batch: Sequence[ObsDict]) -> np.ndarray:
        """float32 [B, A] for B observations in one forward pass."""
        tensors = {key: torch.from_numpy(np.stack([obs[key] for obs in batch])) for key in batch[0]}
        return _to_numpy(self.agent.act(tensors, eval_mode=self.eval_mode, cpu=True), 2)


def _to_numpy(action: torch.Tensor, ndim: int) -> np.ndarray:
    if action.dim() != ndim:
        raise EvalError(f"agent.act returned shape {list(action.shape)}, expected {ndim} axes")
    return action.detach().float().cpu().numpy()


@contextmanager
def evaluating(agent: Player) -> Iterator[None]:
    """Eval mode, no gradients, global generators restored afterwards."""
    with ExitStack() as stack:
        stack.enter_context(preserve_rng())
        stack.enter_context(torch.no_grad())
        if isinstance(agent, torch.nn.Module):
            stack.enter_context(in_eval_mode(agent))
        yield


def check_games(num_game: int, seed: int) -> None:
    """Raise ValueError for an impossible number of games or seed."""
    if num_game < 1:
        raise ValueError(f"num_game is {num_game}; must be at least 1")
    if seed < 0:
        raise ValueError(f"seed is {seed}; must not be negative")


def play_episode(
    env: Env,
    runner: PolicyRunner,
    seed: int,
    frames: list[np.ndarray] | None = None,
    pause: Callable[[], None] | None = None,
    recording: EpisodeRecording | None = None,
) -> Episode:
    """One game; annotated frames are appended to ``frames`` when given, steps to ``recording``.

    ``pause`` is called before every step; if it raises, the game ends.
    Raises NonFiniteError for an action, reward or observation that is not finite.
    """
    generator, task = runner.generator(seed), env.spec.task
    obs, _ = env.reset(seed=seed)
    check_observed(task, seed, 0, obs)
    score, length, success, done = 0.0, 0, False, False
    discounted, factor = 0.0, 1.0
    expected: dict[str, float] = {}
    while not done:
        if pause is not None:
            pause()
        if frames is not None:
            frames.append(annotate(env.render(), f"seed {seed}  step {length}", success))
        seen = runner.timed(obs, seed, length)
        if recording is None:
            action = runner.act(seen, generator)
        else:
            decision = runner.explain(seen, generator)
            recording.before(length, env, obs, decision)
            action = decision.action.numpy()
        check_action(action, seed, length)
        if length == 0:
            expected = runner.expected(seen, action)
        obs, reward, terminated, truncated, info = env.step(action)
        length += 1
        check_observed(task, seed, length, obs, reward)
        score += float(reward)
        if runner.discount is not None:
            discounted += factor * float(reward)
            factor *= runner.discount
        success = success or bool(info["success"])
        done = terminated or truncated
        if recording is not None:
            recording.after(float(reward), score, success)
    if recording is not None:
        recording.before(length, env, obs)
    if frames is not None:
        outcome = "" if success else "  failure"  # annotate marks successes
        last = annotate(env.render(), f"seed {seed}  step {length}{outcome}", success)
        frames += [last] * 10  # hold the outcome for half a second
    metrics = {**info.get("metrics", {}), **expected}
    if runner.discount is not None:
        metrics[DISCOUNTED_RETURN] = discounted
    return Episode(seed, score, success, length, metrics)


def run_eval(
    env: Env,
    agent: Player,
    num_game: int,
    seed: int,
    *,
    eval_mode: bool = True,
    record: str | Path | None = None,
    verbose: bool = False,
    pause: Callable[[], None] | None = None,
    recordings: Recordings | None = None,
    forecast: Forecast | None = None,
) -> EvalResult:
    """Play ``num_game`` episodes with seeds ``seed .. seed + num_game - 1``.

    Args:
        agent: put in eval mode during the evaluation.
        eval_mode: passed to ``agent.act``; False plays the exploring agent.
        record: folder for one MP4 per game (needs an environment that can render).
        verbose: print one line per game.
        pause: called between steps; if it raises, the evaluation ends.
        recordings: where to keep each game for rerun's viewer (with ``eval_mode``).
        forecast: what the agent expects of an episode, measured with its discounted return.
    """
    check_games(num_game, seed)
    if recordings is not None:
        if not eval_mode:
            raise ValueError("recordings show how an agent acts in eval mode (eval_mode True)")
        recordings.check(range(seed, seed + num_game))
    runner = PolicyRunner(agent, eval_mode=eval_mode, forecast=forecast)
    episodes = []
    with evaluating(agent):
        for game_seed in range(seed, seed + num_game):
            episode, frames = _play_until_played(
                env, runner, game_seed, bool(record), pause, recordings
            )
            episodes.append(episode)
            if record and frames is not None:
                outcome = "success" if episode.success else "failure"
                write_video(Path(record) / f"seed{game_seed}_{outcome}.mp4", frames)
            if verbose:
                print_episode(episode)
    return EvalResult.of(episodes)


def _play_until_played(
    env: Env,
    runner: PolicyRunner,
    seed: int,
    record: bool,
    pause: Callable[[], None] | None,
    recordings: Recordings | None,
) -> tuple[Episode, list[np.ndarray] | None]:
    """One game and its frames; a game that was lost on the way is played again from the start."""
    for left in reversed(range(MOST_TRIES)):
        frames: list[np.ndarray] | None = [] if record else None
        try:
            if recordings is None:
                return play_episode(env, runner, seed, frames, pause), frames
            with recordings.episode(env.spec, seed) as recording:
                return play_episode(env, runner, seed, frames, pause, recording), frames
        except EpisodeLost as error:
            if not left:
                raise EvalError(f"seed {seed}: lost {MOST_TRIES} times: {error}") from error
            env.say(f"seed {seed} is played again: {error}")
    raise AssertionError  # the last try has returned or raised


def print_episode(episode: Episode) -> None:
    """One line about one game."""
    outcome = "success" if episode.success else "failure"
    print(
        f"seed {episode.seed}: {outcome}, score {episode.score:.3f}, {episode.length} steps",
        flush=True,
    )
