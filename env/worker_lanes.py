"""Lanes in workers (``env.worker``), processes of this machine or actors of a Ray cluster: N
environments play at once.

An episode is its seed and its actions, which are kept here. So a worker that died, or that hung
until it was killed, costs no step: a new one plays the episode again up to the same step, and the
run goes on with the same bits.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import numpy as np

from common_utils.resources import Need, check_fits
from common_utils.run_config import check
from common_utils.specs import EnvSpec
from env.config import EnvConfig
from env.core import EnvError, EpisodeLost
from env.lanes import Lanes, Reply, Request
from env.remote import (
    BUILD_TIMEOUT,
    DEFAULT_MAKER,
    TRIES,
    Worker,
    WorkerLost,
    end,
    worker_class,
)


@dataclass
class _Lane:
    """An environment's worker, and what brings another one to the same place."""

    number: int
    worker: Worker
    seed: int | None = None  # of the episode, None before the first
    actions: list[list[float]] = field(default_factory=list)  # that were answered
    asked: Request | None = None
    lost: str = ""  # why its worker is of no use any more
    tries: int = 0  # that lost the present request

    def answered(self) -> None:
        """Its request becomes part of its episode."""
        assert self.asked is not None
        if self.asked.seed is not None:
            self.seed, self.actions = self.asked.seed, []
        else:
            self.actions.append(np.asarray(self.asked.action, np.float64).tolist())
        self.asked, self.tries = None, 0

    @property
    def where(self) -> str:
        """Its place, for messages."""
        if self.seed is None or (self.asked is not None and self.asked.seed is not None):
            return "the start of an episode"
        return f"step {len(self.actions)} of the episode of seed {self.seed}"


class WorkerLanes(Lanes):
    """In processes of this machine.

    Args:
        env_cfg: what ``maker`` takes.
        num: environments, each in a worker of its own.
        timeout: seconds that a step or reset may take; a worker that takes longer is replaced.
        maker: "module:function" that builds an Env, importable in a worker.
    """

    ENGINE = "process"

    def __init__(
        self, env_cfg: Mapping[str, Any], num: int, timeout: float, maker: str = DEFAULT_MAKER
    ) -> None:
        self.num, self.timeout = num, timeout
        self._env_cfg, self._maker = dict(env_cfg), maker
        self._say: Callable[[str], None] = print
        self._drawn = 0.0
        self._lanes: list[_Lane] = []
        try:
            self._open()
        except BaseException:
            self.close()
            raise

    @classmethod
    def open(cls, cfg: EnvConfig, num: int, timeout: float) -> WorkerLanes:
        """See :class:`Lanes`."""
        check(cfg)
        return cls(asdict(cfg), num, timeout)

    def _open(self) -> None:
        """The first one alone, which shows how much memory each takes; then all others at once."""
        if self.num > (most := worker_class(self.ENGINE).most()):
            raise EnvError(
                f"num_env: {self.num}, expected at most {most}, the number of the cluster's CPUs"
            )
        self._lanes = [_Lane(0, self._start(0))]
        ready = self._ready(self._lanes[0].worker)
        self.spec, self._replayable = EnvSpec.from_dict(ready[1]), bool(ready[2])
        first = self._lanes[0].worker
        check_fits({"further environments": Need(first.memory() * (self.num - 1), "num_env")})
        how_many = "1 environment," if self.num == 1 else f"{self.num} environments, each"
        self.notes = [f"{how_many} {first.housing()}"]
        self._lanes += [_Lane(number, self._start(number)) for number in range(1, self.num)]
        for lane in self._lanes[1:]:
            self._ready(lane.worker)

    def _start(self, number: int) -> Worker:
        worker = worker_class(self.ENGINE)(f"environment {number}", self.timeout, EnvError)
        worker.build(self._maker, self._env_cfg)
        return worker

    def _ready(self, worker: Worker) -> tuple[Any, ...]:
        try:
            return worker.receive()
        except WorkerLost as error:
            raise EnvError(str(error)) from None

    @property
    def replayable(self) -> bool:
        """See :class:`Lanes`."""
        return self._replayable

    @property
    def render_seconds(self) -> float:
        """See :class:`Lanes`."""
        return self._drawn

    def listen(self, say: Callable[[str], None], on_wait: Callable[[], None]) -> None:
        """See :class:`Lanes`; workers are only waited for as long as their time limits allow."""
        self._say = say

    # ------------------------------------------------------------------ playing

    def reset(self, lane: int, seed: int) -> None:
        """See :class:`Lanes`."""
        self._ask(self._lanes[lane], Request(seed=seed))

    def send(self, lane: int, action: np.ndarray) -> None:
        """See :class:`Lanes`."""
        self._ask(self._lanes[lane], Request(action=action))

    def _ask(self, lane: _Lane, request: Request) -> None:
        lane.asked = request
        if not lane.lost:
            _noting_loss(lane, partial(_put, lane.worker, request))

    def receive(self, lane: int) -> Reply:
        """See :class:`Lanes`."""
        at = self._lanes[lane]
        if at.asked is None:
            raise EnvError(f"environment {lane}: receive: nothing was asked")
        while True:
            try:
                if at.lost:
                    self._bring_back(at)
                reply = self._answer(at)
            except WorkerLost as error:
                at.lost, at.tries = str(error), at.tries + 1
                if at.tries >= TRIES:
                    raise EnvError(f"lost {at.tries} times at {at.where}: {error}") from None
            else:
                at.answered()
                return reply

    def _answer(self, lane: _Lane) -> Reply:
        assert lane.asked is not None
        started = time.perf_counter()
        result, took, drawn = _get(lane.worker)
        waited = time.perf_counter() - started
        self._drawn += waited * min(1.0, drawn / max(took, 1e-9))
        if lane.asked.seed is None:
            return Reply(*result)
        obs, info = result
        return Reply(obs, 0.0, False, False, info)

    # ------------------------------------------------------------------ lost workers

    def _bring_back(self, lane: _Lane) -> None:
        """A new worker, which plays the episode up to the same step, and the request again."""
        assert lane.asked is not None
        why, where = lane.lost, lane.where
        lane.worker.kill()
        lane.worker = self._start(lane.number)
        lane.worker.receive()
        lane.lost = ""
        in_episode = lane.asked.seed is None
        if in_episode and not self.replayable:
            lane.seed, lane.actions, lane.asked, lane.tries = None, [], None, 0
            raise EpisodeLost(f"{why}; the episode cannot be played again")
        if in_episode:
            _restore(lane)
            _get(lane.worker)
        self._say(f"note: {why}; a new worker was brought to {where}")
        _put(lane.worker, lane.asked)

    # ------------------------------------------------------------------ state

    def state_dict(self) -> list[dict[str, Any]]:
        """See :class:`Lanes`."""
        return [
            {
                "seed": lane.seed,
                "actions": [list(a) for a in lane.actions],
                "asked": None if lane.asked is None else lane.asked.plain(),
            }
            for lane in self._lanes
        ]

    def load_state_dict(self, states: Sequence[Mapping[str, Any]]) -> None:
        """See :class:`Lanes`; all play their episodes again at the same time."""
        for lane, state in zip(self._lanes, states, strict=True):
            lane.seed, lane.actions = state["seed"], [list(a) for a in state["actions"]]
            if lane.seed is not None:
                _noting_loss(lane, partial(_restore, lane))
        for lane, state in zip(self._lanes, states, strict=True):
            if lane.seed is not None and not lane.lost:
                _noting_loss(lane, partial(_get, lane.worker))
            asked = Request.of(state["asked"])
            if asked is not None:
                self._ask(lane, asked)

    def close(self) -> None:
        """End the workers; safe to call twice."""
        lanes, self._lanes = self._lanes, []
        end([lane.worker for lane in lanes])


class RayLanes(WorkerLanes):
    """In actors of a Ray cluster."""

    ENGINE = "ray"


def _noting_loss(lane: _Lane, do: Callable[[], object]) -> None:
    """``do``; if the worker is lost, it is replaced when an answer of the lane is wanted."""
    try:
        do()
    except WorkerLost as error:
        lane.lost = str(error)


def _put(worker: Worker, request: Request) -> None:
    """Send a request; WorkerLost if the worker is gone."""
    if request.seed is not None:
        worker.what = f"starting the episode of seed {request.seed}"
        worker.send(("call", "reset", (), {"seed": request.seed}))
    else:
        worker.what = "taking a step"
        worker.send(("call", "step", (request.action,), {}))


def _get(worker: Worker) -> tuple[Any, float, float]:
    """What the environment's method returned, and the seconds it took and drew images."""
    kind, *rest = worker.receive()
    if kind == "misuse":
        raise EnvError(rest[0])
    return rest[0], rest[1], rest[2]


def _restore(lane: _Lane) -> None:
    """Let a worker play the lane's episode again; it has as long as for building."""
    lane.worker.what = f"playing again to {lane.where}"
    state = {"seed": lane.seed, "actions": lane.actions}
    lane.worker.send(
        ("call", "load_state_dict", (state,), {}), max(lane.worker.timeout, BUILD_TIMEOUT)
    )
