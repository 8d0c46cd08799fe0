"""The learner's side of ``actor_learner 1``: steps come from the actor's process, weights go there.

``workspace.actor`` is the other side. The two wait for each other. The learner takes step k, stores
it and updates as after any step; it has never done more updates than its steps allow. The actor may
begin a step as long as at most ``max_lead`` earlier ones are not finished here. So the number of
updates per step is that of an ordinary run, and with ``max_lead`` 0 the two take turns.

Results depend on timing: on how old the actor's weights are at each step. The actor's episodes
cannot be brought back, so a resumed run, or one whose actor was lost, drops those that are running.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from common_utils import ranks, run_config
from common_utils.kept_weights import KeptWeights
from common_utils.run_config import ConfigError
from common_utils.specs import EnvSpec
from common_utils.stopwatch import Stopwatch
from env.config import EnvConfig
from env.core import EnvError, EnvGone
from env.factory import suite_class
from env.remote import TRIES, WorkerLost, WorkerProcess
from rl.agent import Agent
from workspace.actor import Phase, Played
from workspace.collector import Choose, Ended, Playing, Store
from workspace.rl_config import MainConfig

MAKER = "workspace.actor:make"


class ActorProcess:
    """The process that has the environments, and acts.

    Args:
        cfg, env_cfg: of the run, and of its environments.
        weights: of the BC policies.
    """

    def __init__(self, cfg: MainConfig, env_cfg: EnvConfig, weights: KeptWeights) -> None:
        _check(cfg)
        self.cfg = cfg
        # a robot's limits are those of its connection; it says itself when it is gone
        self.own_limits = suite_class(env_cfg.suite).only_one
        self._settings = {
            "config": run_config.to_dict(cfg), "env": asdict(env_cfg), "weights": asdict(weights),
        }  # fmt: skip
        self.say: Callable[[str], None] = print
        self.on_wait: Callable[[], None] = lambda: None
        try:
            self.spec = self.start()
        except WorkerLost as error:
            raise EnvError(str(error)) from None
        several = "" if cfg.num_env == 1 else f" with {cfg.num_env} environments"
        self.notes: Sequence[str] = [
            f"an actor in a process of its own{several}, at most {cfg.max_lead} steps ahead of the "
            "updates"
        ]

    def start(self) -> EnvSpec:
        """Start the process; what its environments deliver. WorkerLost if it dies meanwhile."""
        self.worker = WorkerProcess("the actor", self.cfg.env_timeout, EnvError)
        try:
            self.worker.build(MAKER, self._settings)
            return EnvSpec.from_dict(self.worker.receive()[1])
        except BaseException:
            self.worker.kill()
            raise

    def listen(self, say: Callable[[str], None], on_wait: Callable[[], None]) -> None:
        """As ``env.lanes.Lanes``."""
        self.say, self.on_wait = say, on_wait

    def call(self, method: str, *args: Any) -> Any:
        """What a method of ``workspace.actor.Actor`` returns; WorkerLost if the process is gone."""
        self.worker.what = "playing"
        self.worker.send(("call", method, args, {}))
        kind, *rest = self.worker.receive()
        if kind == "misuse":  # an environment's own error
            raise EnvError(rest[0])
        return rest[0]

    def close(self) -> None:
        """End it; safe to call twice."""
        self.worker.kill()


def _check(cfg: MainConfig) -> None:
    """Raise ConfigError for what an actor cannot do."""
    if ranks.world() > 1:
        raise ConfigError(f"actor_learner: 1, expected 0 with {ranks.world()} ranks (torchrun)")
    if suite_class(cfg.suite).only_one and cfg.num_eval_episode:
        raise ConfigError(
            f"num_eval_episode: {cfg.num_eval_episode}, expected 0 with actor_learner 1 and suite "
            f"{cfg.suite}: the actor has the only environment"
        )


class ActorPlay(Playing):
    """Stores what the actor plays; see the module's docstring.

    Args:
        agent: its weights are sent to the actor whenever they have changed.
        replay: where episodes go.
        watch: times "env" (waiting for the actor), "act" (sending weights) and "add".
    """

    def __init__(self, actor: ActorProcess, agent: Agent, replay: Store, watch: Stopwatch) -> None:
        self.actor, self.agent, self.replay, self.watch = actor, agent, replay, watch
        self.episodes = 0  # the next one's number
        self.steps = 0  # of training
        self._lengths: dict[int, int] = {}  # of running episodes, by lane
        self._news: deque[tuple[str, Any]] = deque()
        self._missing: int | None = None  # episodes of the phase, if it is warm-up
        self._in_phase = False
        self._done = 0  # steps of the phase that were stored
        self._stale = False  # whether the actor has older weights
        self._losses = 0  # since the last step

    # ------------------------------------------------------------------ playing

    def restart(self, most: int | None = None) -> None:
        """Let the actor play the warm-up (``most`` episodes are missing), or the training. It
        begins episodes by itself."""
        if self._in_phase and (most is None) == (self._missing is None):
            self._missing = most
            return
        self._missing, self._in_phase = most, True
        self._trying(self._begin)

    def step(self, choose: Choose) -> Ended | None:
        """Store the actor's next step; it chooses itself."""
        with self.watch("env"):
            played = self._next_step()
        with self.watch("add"):
            for method, args in played.calls:
                self._store(method, args)
        if self.agent.stats is not None:
            for name, value in played.stats:
                self.agent.stats.append(name, value)
            ahead = sum(kind == "step" for kind, _ in self._news)
            self.agent.stats.append("data/actor_lead", ahead)
        self.episodes, self._losses = played.episode, 0
        self._done += 1
        self.steps += self._missing is None
        return played.ended

    def _store(self, method: str, args: list[Any]) -> None:
        lane = args[-1]
        getattr(self.replay, method)(*args)
        if method == "add" and self.replay.is_running(lane):
            self._lengths[lane] += 1
        elif method == "new_episode":
            self._lengths[lane] = 0
        else:
            del self._lengths[lane]

    def _next_step(self) -> Played:
        """The next step that the actor has played, waiting for it if there is none."""
        self._trying(self._take)
        since = time.monotonic()
        while True:
            while self._news:
                kind, what = self._news.popleft()
                if kind == "step":
                    return Played(**what)
                if kind == "gone":
                    raise EnvGone(what)
                self.actor.say(what)
            if self.actor.own_limits:
                self.actor.on_wait()
            elif time.monotonic() - since > (limit := self.actor.cfg.env_timeout):
                self._replace(f"the actor played no step for {limit:g} s")
                since = time.monotonic()
            if self._trying(self._take):
                since = time.monotonic()

    def _take(self) -> None:
        """Tell how far the learner is, and get what the actor has done meanwhile."""
        with self.watch("act"):
            weights = self._changed_weights()
        wait = not any(kind == "step" for kind, _ in self._news)
        self._news.extend(self.actor.call("take", self._done, wait, weights))

    def _begin(self) -> None:
        """Let a fresh actor, or one whose phase is over, play."""
        more = max(0, self.actor.cfg.num_train_step - self.steps)
        phase = Phase(self._missing, self.steps, more, self.episodes)
        self._stale, self._done = False, 0
        self.actor.call("begin", vars(phase), self._weights())

    # ------------------------------------------------------------------ weights

    def _weights(self) -> dict[str, np.ndarray]:
        return {k: v.detach().cpu().numpy() for k, v in self.agent.state_dict().items()}

    def updated(self) -> None:
        """See :class:`Playing`: the actor gets the weights with the next message."""
        self._stale = True

    def _changed_weights(self) -> dict[str, np.ndarray] | None:
        stale, self._stale = self._stale, False
        return self._weights() if stale else None

    # ------------------------------------------------------------------ a lost actor

    def _trying(self, do: Callable[[], None]) -> bool:
        """``do``; returns whether the actor was lost meanwhile, and replaced."""
        try:
            do()
        except WorkerLost as error:
            self._replace(str(error))
            return True
        return False

    def _replace(self, why: str) -> None:
        """Start another actor, which begins new episodes."""
        while True:
            self.actor.close()
            self._losses += 1
            if self._losses >= TRIES:
                raise EnvError(f"the actor was lost {self._losses} times without a step: {why}")
            self._news.clear()
            lengths = self.drop()
            dropped = "".join(f"; {n} steps of an episode are dropped" for n in lengths)
            self.actor.say(f"note: {why}; another actor plays on{dropped}")
            try:
                self.actor.start()
                self._begin()
            except WorkerLost as error:
                why = str(error)
            else:
                return

    def drop(self) -> list[int]:
        """See :class:`Playing`."""
        lanes = [lane for lane in self._lengths if self.replay.is_running(lane)]
        for lane in lanes:
            self.replay.drop_episode(lane)
        lengths = [self._lengths[lane] for lane in lanes]
        self._lengths.clear()
        return lengths

    # ------------------------------------------------------------------ resume

    def state_dict(self) -> dict[str, Any]:
        """See :class:`Playing`."""
        return {"episodes": self.episodes, "steps": self.steps, "lengths": dict(self._lengths)}

    def load_state_dict(self, state: Mapping[str, Any]) -> list[int]:
        """See :class:`Playing`."""
        self.episodes, self.steps = state["episodes"], state["steps"]
        self._lengths = dict(state["lengths"])
        return self.drop()
