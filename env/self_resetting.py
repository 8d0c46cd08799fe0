"""Lanes in a vector environment that resets its lanes by itself: most that simulate on a GPU do.

At the end of an episode gymnasium's autoreset mode ``SAME_STEP`` returns the next episode's first
observation, with the last one in ``infos["final_obs"]``; ``NEXT_STEP`` returns it instead of the
next step. Either way the simulator chooses how episodes begin (one seed of ours decides its first
reset), and they end when it says so: a lane whose episode has ended earlier here, at our time limit
or at a success, or that had none, takes steps that nobody stores until the simulator ends it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gymnasium.vector import AutoresetMode, VectorEnv

from env.config import EnvConfig
from env.core import EnvError
from env.lanes import Reply
from env.vector_lanes import VectorLanes, made, row_info, row_of

# steps that nobody stores, after which a simulator counts as one that never ends an episode
PATIENCE = 100_000


class SelfResettingLanes(VectorLanes):
    """See the module's docstring."""

    modes = (AutoresetMode.SAME_STEP, AutoresetMode.NEXT_STEP)

    def __init__(self, vector: VectorEnv, cfg: EnvConfig) -> None:
        super().__init__(vector, cfg)
        self._same_step = vector.metadata["autoreset_mode"] == AutoresetMode.SAME_STEP
        # first observations and infos that are not taken yet
        self._starts: list[tuple[Any, dict[str, Any]] | None] = [None] * self.num
        self._ended = [False] * self.num  # NEXT_STEP: the next step returns a start
        self.notes = [*self.notes, self._price(vector, cfg)]

    @classmethod
    def open(cls, cfg: EnvConfig, num: int, timeout: float) -> VectorLanes:
        """See :class:`env.lanes.Lanes`; of either kind, by the simulator's autoreset mode."""
        vector = made(cfg, num)
        kind = cls if vector.metadata.get("autoreset_mode") in cls.modes else VectorLanes
        return kind(vector, cfg)

    def _price(self, vector: VectorEnv, cfg: EnvConfig) -> str:
        """For the run's log: what it costs that the simulator resets by itself."""
        limit = getattr(vector.spec, "max_episode_steps", None)
        line = (
            f"note: it resets by itself (autoreset mode {vector.metadata['autoreset_mode'].value}):"
            " episodes begin as it chooses, not by seeds of this run"
        )
        if limit is not None and limit <= cfg.episode_length:
            return line
        ends = "" if limit is None else f", after {limit} steps"
        return f"{line}, and end when it says so{ends}; its steps after episode_length " + (
            f"{cfg.episode_length} are lost"
        )

    def ready(self, lane: int) -> bool:
        """A lane begins when the simulator has reset it, which takes steps of all."""
        asked = self._asked[lane]
        if asked is None or asked.seed is None:
            return True
        return self._starts[lane] is not None or len(self._over) == self.num

    def receive(self, lane: int) -> Reply:
        """See :class:`env.lanes.Lanes`."""
        asked = self._asked[lane]
        if asked is not None and asked.seed is not None:
            self._rows[lane].last = self._start(lane)
            self._ready.add(lane)
        return super().receive(lane)

    def _start(self, lane: int) -> tuple[Any, dict[str, Any]]:
        """The lane's next start, for which no other lane may be playing if it is not there yet."""
        if not self._begun:
            self._begin_all()
        for _ in range(PATIENCE):
            start, self._starts[lane] = self._starts[lane], None
            if start is not None:
                return start
            self._step()
        raise EnvError(
            f"gym.vector: the simulator has not ended an episode within {PATIENCE} steps, expected "
            "a time limit of its own: it resets by itself"
        )

    def _begin_all(self) -> None:
        """The first reset, of all lanes, by the first seed that was asked for."""
        seeds = [a.seed for a in self._asked if a is not None and a.seed is not None]
        self._begun = True
        obs, infos = self._vector.reset(seed=seeds[0])
        self._starts = [(row_of(obs, k), row_info(infos, k)) for k in range(self.num)]

    def _step(self) -> None:
        """Step all lanes; a start that is not taken by now is lost."""
        asked = self._actions_asked()
        obs, reward, terminated, truncated, infos = self._vector.step(self._scaled(asked))
        for lane in range(self.num):
            row, info = row_of(obs, lane), row_info(infos, lane)
            over = bool(terminated[lane] or truncated[lane])
            starts = over if self._same_step else self._ended[lane]
            self._starts[lane] = (row, info) if starts else None
            self._ended[lane] = over and not self._same_step
            if lane in asked:
                if over and self._same_step:
                    row, info = _final(infos, lane)
                outcome = float(reward[lane]), bool(terminated[lane]), bool(truncated[lane])
                self._rows[lane].last = (row, *outcome, info)
                self._ready.add(lane)


def _final(infos: Mapping[str, Any], lane: int) -> tuple[Any, dict[str, Any]]:
    """The last observation and info of an episode that was reset in the same step."""
    mask = infos.get("_final_obs")
    if "final_obs" not in infos or (mask is not None and not mask[lane]):
        raise EnvError(
            "gym.vector: infos: found no final_obs of an episode that has ended, expected one in "
            "autoreset mode SameStep"
        )
    return row_of(infos["final_obs"], lane), row_info(infos.get("final_info", {}), lane)
