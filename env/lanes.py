"""N environments of one kind, played at the same time; each has its lane.

    lanes.reset(lane, seed)          # ask, then do something else
    reply = lanes.receive(lane)      # the first observation
    lanes.send(lane, action)
    reply = lanes.receive(lane)      # its outcome

``LANES`` has a row per way of playing them. What a lane answers follows from its seeds and actions
alone, so neither the way nor the processes' timing changes a run. docs/scaling.md describes it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from common_utils.lookup import resolve
from common_utils.specs import EnvSpec
from env.config import EnvConfig
from env.core import Env, EnvError, ObsDict
from env.factory import make_env, suite_class

# ways of playing lanes: "module:class", with ``open(cfg, num, timeout)``
LANES = {
    "local": "env.lanes:LocalLane",
    "process": "env.worker_lanes:WorkerLanes",
    "ray": "env.worker_lanes:RayLanes",
    "vector": "env.self_resetting:SelfResettingLanes",
}


class Reply(NamedTuple):
    """What :meth:`env.core.Env.step` returns; of a reset the observation and ``info`` alone."""

    obs: ObsDict
    reward: float
    terminated: bool
    truncated: bool
    info: dict[str, Any]


@dataclass(frozen=True)
class Request:
    """What a lane was asked for and has not answered: an episode's seed, or an action."""

    seed: int | None = None
    action: np.ndarray | None = None

    def plain(self) -> dict[str, Any]:
        """For a saved state."""
        action = None if self.action is None else np.asarray(self.action, np.float32)
        return {"seed": self.seed, "action": action}

    @classmethod
    def of(cls, state: Mapping[str, Any] | None) -> Request | None:
        """Inverse of :meth:`plain`; None of None."""
        return None if state is None else cls(state["seed"], state["action"])


class Lanes(ABC):
    """Environments of one kind; lanes are numbered from 0."""

    spec: EnvSpec
    # how many
    num: int
    # lines about them for the run's log
    notes: Sequence[str] = ()

    @classmethod
    @abstractmethod
    def open(cls, cfg: EnvConfig, num: int, timeout: float) -> Lanes:
        """``num`` environments of ``cfg``; an answer may take ``timeout`` seconds."""

    @property
    def replayable(self) -> bool:
        """As ``Env.replayable``, of all of them."""
        return True

    @property
    def render_seconds(self) -> float:
        """Seconds of waiting in :meth:`receive` so far in which they drew images."""
        return 0.0

    @property
    def network_seconds(self) -> float:
        """As ``Env.network_seconds``."""
        return 0.0

    @abstractmethod
    def listen(self, say: Callable[[str], None], on_wait: Callable[[], None]) -> None:
        """Set where lines about lost environments go, and what is called while something outside
        this machine is waited for (it may raise to end that)."""

    @abstractmethod
    def reset(self, lane: int, seed: int) -> None:
        """Ask for the start of the episode of ``seed``."""

    @abstractmethod
    def send(self, lane: int, action: np.ndarray) -> None:
        """Ask for a step with ``action``, float32 [A] in [-1, 1]."""

    def ready(self, lane: int) -> bool:
        """Whether :meth:`receive` can answer before other lanes, which play, take a step."""
        return True

    @abstractmethod
    def receive(self, lane: int) -> Reply:
        """The answer to what the lane was asked last.

        Raises EpisodeLost and EnvGone as ``Env.step`` does, EnvError for a refused action and for
        an environment that cannot be kept alive.
        """

    @abstractmethod
    def state_dict(self) -> list[dict[str, Any]]:
        """Of each lane the episode before its unanswered request, {"seed", "actions"} as
        ``Env.state_dict`` has them, and the request, "asked" (``Request.plain``) or None."""

    @abstractmethod
    def load_state_dict(self, states: Sequence[Mapping[str, Any]]) -> None:
        """Inverse of :meth:`state_dict`; unanswered requests are asked again."""

    @abstractmethod
    def close(self) -> None:
        """Free everything; safe to call twice."""


class LocalLane(Lanes):
    """One environment in this process, which plays when its answer is received."""

    num = 1

    def __init__(self, env: Env) -> None:
        self.env, self.spec = env, env.spec
        self._asked: Request | None = None

    @classmethod
    def open(cls, cfg: EnvConfig, num: int, timeout: float) -> LocalLane:
        """See :class:`Lanes`; ``num`` is 1, and an environment here has no time limit."""
        if num != 1:
            raise EnvError(f"num_env: {num}, expected 1 in this process")
        return cls(make_env(cfg))

    @property
    def replayable(self) -> bool:
        """See :class:`Lanes`."""
        return self.env.replayable

    @property
    def render_seconds(self) -> float:
        """See :class:`Lanes`."""
        return self.env.render_seconds

    @property
    def network_seconds(self) -> float:
        """See :class:`Lanes`."""
        return self.env.network_seconds

    def listen(self, say: Callable[[str], None], on_wait: Callable[[], None]) -> None:
        """See :class:`Lanes`."""
        self.env.say, self.env.on_wait = say, on_wait

    def reset(self, lane: int, seed: int) -> None:
        """See :class:`Lanes`."""
        self._asked = Request(seed=seed)

    def send(self, lane: int, action: np.ndarray) -> None:
        """See :class:`Lanes`."""
        self._asked = Request(action=action)

    def receive(self, lane: int) -> Reply:
        """See :class:`Lanes`."""
        asked, self._asked = self._asked, None
        if asked is None:
            raise EnvError("receive: nothing was asked")
        if asked.seed is not None:
            obs, info = self.env.reset(seed=asked.seed)
            return Reply(obs, 0.0, False, False, info)
        assert asked.action is not None
        return Reply(*self.env.step(asked.action))

    def state_dict(self) -> list[dict[str, Any]]:
        """See :class:`Lanes`."""
        asked = None if self._asked is None else self._asked.plain()
        return [{**self.env.state_dict(), "asked": asked}]

    def load_state_dict(self, states: Sequence[Mapping[str, Any]]) -> None:
        """See :class:`Lanes`."""
        (state,) = states
        self.env.load_state_dict({k: v for k, v in state.items() if k != "asked"})
        self._asked = Request.of(state["asked"])

    def close(self) -> None:
        """See :class:`Lanes`."""
        self.env.close()


def open_lanes(cfg: EnvConfig, num: int = 1, timeout: float = 120.0, way: str = "") -> Lanes:
    """``num`` environments of ``cfg``.

    Args:
        timeout: seconds that an answer may take, before its process counts as hung.
        way: a row of ``LANES``; "": one is played here, several in processes of their own, and all
            in the vector environment that ``cfg.gym_vector`` chooses.

    Raises EnvError for a suite of which there is only one environment (``Env.only_one``).
    """
    if cfg.gym_vector and not suite_class(cfg.suite).plays_vectors:
        raise EnvError(f"gym.vector: '{cfg.gym_vector}', expected none with suite {cfg.suite}")
    if num > 1 and suite_class(cfg.suite).only_one:
        raise EnvError(
            f"num_env: {num}, expected 1: suite {cfg.suite} has one environment, which several "
            "cannot share"
        )
    if way == "ray" and (cfg.gym_vector or suite_class(cfg.suite).only_one):
        raise EnvError(
            "rollout: ray, expected process: "
            + (f"gym.vector {cfg.gym_vector}" if cfg.gym_vector else f"suite {cfg.suite}")
            + " plays in the trainer's process"
        )
    usual = "vector" if cfg.gym_vector else "local" if num == 1 else "process"
    kind: type[Lanes] = resolve(LANES[way or usual])
    return kind.open(cfg, num, timeout)
