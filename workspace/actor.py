"""The actor's side of ``actor_learner 1``: it steps the environments and acts, nothing else.

It runs in a process of its own (``env.worker`` builds it as any environment) and plays in a thread,
with the ordinary lanes and the ordinary collector, so that neither an update nor a message delays a
step. ``workspace.actor_play`` is the learner's side, which takes the steps from here.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from common_utils import run_config
from common_utils.ibrl_utils import eval_mode, schedule
from common_utils.kept_weights import KeptWeights
from common_utils.seeding import seed_for, set_all_seeds
from common_utils.specs import BC_ACTION, Obs
from common_utils.stopwatch import Stopwatch
from env.config import EnvConfig
from env.core import EnvGone
from env.lanes import open_lanes
from rl.successes import Record
from workspace.build_agent import build_agent, load_bc_policies
from workspace.collector import Collector, Ended, acting
from workspace.prepare_rl import warm_up_actions
from workspace.rl_config import MainConfig

# seconds that the learner's question waits for a step, before it is answered with none
PATIENCE = 0.2


@dataclass(frozen=True)
class Phase:
    """What the learner lets the actor play."""

    # episodes that warm-up still needs; None: training
    missing: int | None
    # environment steps of training so far, and how many more are wanted
    step: int
    more: int
    # the number of the next episode
    episode: int


@dataclass
class Played:
    """A step, as the learner stores it."""

    # calls of the replay: method and arguments
    calls: list[tuple[str, list[Any]]]
    ended: Ended | None
    # metrics of acting
    stats: list[tuple[str, float]]
    # the number of the next episode
    episode: int


class Outbox:
    """In the place of the replay: keeps what a collector stores, for the learner's replay.

    keys: the observations that the replay holds.
    """

    def __init__(self, keys: Sequence[str]) -> None:
        self._keys, self._running = set(keys), set[int]()
        self.calls: list[tuple[str, list[Any]]] = []

    def is_running(self, lane: int = 0) -> bool:
        """As ``ReplayBuffer``, like all that follow."""
        return lane in self._running

    def new_episode(self, obs: Obs, record: Record | None = None, lane: int = 0) -> None:
        """See ``ReplayBuffer``."""
        self._running.add(lane)
        self.calls.append(("new_episode", [self._arrays(obs), record, lane]))

    def add(
        self,
        obs: Obs,
        action: torch.Tensor,
        reward: float,
        terminated: bool,
        truncated: bool,
        success: bool,
        record: Record | None = None,
        lane: int = 0,
    ) -> None:
        """See ``ReplayBuffer``."""
        if terminated or truncated:
            self._running.remove(lane)
        outcome = [action.numpy(), reward, terminated, truncated, success]
        self.calls.append(("add", [self._arrays(obs), *outcome, record, lane]))

    def drop_episode(self, lane: int = 0) -> None:
        """See ``ReplayBuffer``."""
        self._running.remove(lane)
        self.calls.append(("drop_episode", [lane]))

    def _arrays(self, obs: Obs) -> dict[str, np.ndarray]:
        return {k: v.numpy() for k, v in obs.items() if k in self._keys}

    def emptied(self) -> list[tuple[str, list[Any]]]:
        """What was kept since the last call."""
        calls, self.calls = self.calls, []
        return calls


class _Stats:
    """A meter of the agent's acting (``Agent.set_stats``)."""

    def __init__(self) -> None:
        self._entries: list[tuple[str, float]] = []

    def append(self, key: str, value: Any) -> None:
        """Keep an entry."""
        self._entries.append((key, float(value)))

    def emptied(self) -> list[tuple[str, float]]:
        """What was kept since the last call."""
        entries, self._entries = self._entries, []
        return entries


def make(settings: Mapping[str, Any]) -> Actor:
    """The maker that ``env.worker`` imports."""
    return Actor(settings)


class Actor:
    """See the module's docstring. The learner calls the public methods, from the main thread.

    Args:
        settings: "config" of the run, "env" (EnvConfig), "weights" (KeptWeights), all plain.
    """

    replayable = True

    def __init__(self, settings: Mapping[str, Any]) -> None:
        cfg = run_config.from_dict(MainConfig, settings["config"], "the learner's configuration")
        self.cfg, self.env_cfg = cfg, EnvConfig(**settings["env"])
        self._weights = KeptWeights(**settings["weights"])
        self._changed = threading.Condition()
        # shared with the thread, which changes them while it holds the condition
        self._news: deque[tuple[str, Any]] = deque()
        self._phase: Phase | None = None
        self._played = self._done = 0  # steps of the phase: stored here, finished by the learner
        self._newest: Mapping[str, np.ndarray] | None = None
        self._closed = False
        self._error: BaseException | None = None
        self._built = threading.Event()
        self._thread = threading.Thread(target=self._run, name="actor", daemon=True)
        self._thread.start()
        self._built.wait()
        if self._error is not None:
            raise self._error

    # ------------------------------------------------------------------ for the learner

    def begin(self, phase: Mapping[str, Any], weights: Mapping[str, np.ndarray]) -> None:
        """Play ``phase`` with these weights."""
        with self._changed:
            self._phase, self._newest = Phase(**phase), weights
            self._played = self._done = 0
            self._changed.notify_all()

    def take(
        self, done: int, wait: bool, weights: Mapping[str, np.ndarray] | None
    ) -> list[tuple[str, Any]]:
        """What happened since the last call, in order: ("step", Played's fields), ("say", line),
        ("gone", text).

        done: steps of the phase that the learner has stored and learned from.
        wait: wait a moment if nothing has happened.
        weights: the newest, if they have changed.
        """
        with self._changed:
            self._done = done
            self._newest = self._newest if weights is None else weights
            self._changed.notify_all()
            if wait and not self._news and self._error is None:
                self._changed.wait_for(lambda: self._news or self._error, PATIENCE)
            news = list(self._news)
            self._news.clear()
            if not news and self._error is not None:
                raise self._error
            return news

    def close(self) -> None:
        """End the thread, as soon as the environment answers."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join(timeout=2.0)

    # ------------------------------------------------------------------ the thread

    def _run(self) -> None:
        try:
            self._build()
            self._built.set()
            with torch.no_grad():
                while self._step():
                    pass
            self.envs.close()
        except EnvGone as error:
            self._tell("gone", str(error))
        except BaseException as error:
            with self._changed:
                self._error = error
                self._changed.notify_all()
        finally:
            self._built.set()

    def _build(self) -> None:
        """In the thread that plays: a renderer belongs to the thread that has made it."""
        cfg = self.cfg
        set_all_seeds(seed_for(cfg.seed, "actor", bits=31))
        policies, _ = load_bc_policies(cfg, weights=self._weights)
        self.envs = open_lanes(self.env_cfg, cfg.num_env, cfg.env_timeout, cfg.lanes)
        self.spec = self.envs.spec
        self.envs.listen(partial(self._tell, "say"), self._go_on)
        self.agent = build_agent(cfg, self.spec, policies)
        self._stats = _Stats()
        self._box = Outbox([*self.agent.input_keys, BC_ACTION])
        seen = [c for c in self.env_cfg.cameras if c not in self.agent.input_keys]
        watch = Stopwatch()
        self.play = Collector(self.envs, self.agent, self._box, watch, cfg.seed, seen)
        self._playing: Phase | None = None  # what the collector is in

    def _step(self) -> bool:
        """One environment step, as soon as it is allowed; False: no more."""
        phase = self._wait_for(lambda: True)
        if phase is None:
            return False
        if phase is not self._playing:
            self._enter(phase)
        self.play.restart(phase.missing)
        if self._wait_for(self._may_step) is None:
            return False
        self._use_newest()
        ended = self.play.step(self._choose)
        played = Played(self._box.emptied(), ended, self._stats.emptied(), self.play.episodes)
        if phase.missing is not None and ended is not None and not ended.lost:
            phase = self._playing = Phase(**{**vars(phase), "missing": phase.missing - 1})
        with self._changed:
            self._played += 1
            self._phase = phase if self._phase_goes_on(phase) else None
        self._tell("step", vars(played))
        return True

    def _phase_goes_on(self, phase: Phase) -> bool:
        return self._played < phase.more if phase.missing is None else phase.missing > 0

    def _may_step(self) -> bool:
        """Whether the next step is near enough to those that the learner has finished."""
        return self._played - self._done <= self.cfg.max_lead

    def _wait_for(self, ready: Callable[[], bool]) -> Phase | None:
        """The phase as soon as there is one and ``ready``; None: the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or (self._phase and ready()))
            return None if self._closed else self._phase

    def _enter(self, phase: Phase) -> None:
        self._playing, self.play.episodes = phase, phase.episode
        # another process may have drawn from these before
        seed = seed_for(self.cfg.seed, "actor", phase.episode, phase.step)
        self.agent.rng.manual_seed(seed)
        self.agent.host_rng.manual_seed(seed + 1)
        self.warm_up_rng = np.random.default_rng(seed)
        self.agent.set_stats(self._stats if phase.missing is None else None)

    def _choose(self, observations: Sequence[Obs]) -> Sequence[torch.Tensor]:
        assert self._playing is not None
        if self._playing.missing is not None:
            return warm_up_actions(self, observations)
        step = self._playing.step + self._played
        stddev = schedule(self.cfg.stddev_schedule, step)
        with eval_mode(self.agent):
            act = partial(self.agent.act, eval_mode=False, stddev=stddev)
            return acting(act)(observations)

    def _use_newest(self) -> None:
        with self._changed:
            newest, self._newest = self._newest, None
        if newest is not None:
            self.agent.load_state_dict({k: torch.from_numpy(v) for k, v in newest.items()})

    def _tell(self, kind: str, what: Any) -> None:
        with self._changed:
            self._news.append((kind, what))
            self._changed.notify_all()

    def _go_on(self) -> None:
        if self._closed:
            raise EnvGone("the learner has ended")
