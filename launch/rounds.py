"""A run's rounds, played with the costs of their parts instead of the parts.

The learner does what ``workspace.collector`` and ``train_rl`` do, in the same order: act for all
environments at once, send the actions, then receive and store lane by lane, with updates in
between while the lanes behind still simulate. Environments and learner share the cores of their
machines: with more of them at work than there are cores, all get the same share.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from launch.costs import Costs

LEARNER = -1


class Work(NamedTuple):
    """The learner computes: what for, seconds, and the cores that it takes."""

    part: str
    seconds: float
    cores: int = 1


class Ask(NamedTuple):
    """An environment is asked for something that takes it so many seconds."""

    lane: int
    seconds: float


class Wait(NamedTuple):
    """The learner needs the environment's answer."""

    lane: int


@dataclass(frozen=True)
class Setting:
    """Where and how a run is played.

    Args:
        num_env: environments; one plays in the learner's process.
        cores: of each machine.
        nodes: machines; the learner is on the first, environments are dealt out to all.
        together: whether all episodes begin and end at the same step. They do where every episode
            lasts until its time limit; where successes end episodes, they soon do not.
    """

    num_env: int = 1
    cores: int = 1
    nodes: int = 1
    together: bool = False


@dataclass
class Played:
    """What a number of environment steps took."""

    steps: int = 0
    seconds: float = 0.0
    # of the learner, by what it did, slowed down as the machine was by others
    learner: dict[str, float] = field(default_factory=dict)
    # in which it waited for an environment
    waited: float = 0.0
    # core seconds that were used, of all machines
    busy: float = 0.0


class _Machine:
    """Cores that share their time equally among those who compute (processor sharing).

    ``clock`` is the time that each of them has had. So the order in which they end does not change
    while others come and go.
    """

    def __init__(self, cores: int) -> None:
        self.cores = cores
        self._clock, self.taken = 0.0, 0
        self._ends: list[tuple[float, int, int]] = []

    def begin(self, who: int, seconds: float, cores: int = 1) -> None:
        """``who`` computes for ``seconds`` of its own time."""
        heapq.heappush(self._ends, (self._clock + seconds, who, cores))
        self.taken += cores

    def end(self) -> int:
        """Who ends first; call it when that time has come."""
        _, who, cores = heapq.heappop(self._ends)
        self.taken -= cores
        return who

    @property
    def speed(self) -> float:
        """Of each, 1 for one that is alone on the machine."""
        return min(self.taken, self.cores) / self.taken

    def until_next(self) -> float:
        """Seconds until somebody ends, if nobody comes."""
        if not self._ends:
            return float("inf")
        return max(0.0, self._ends[0][0] - self._clock) / self.speed

    def pass_time(self, seconds: float) -> float:
        """Let time pass; returns the core seconds that were used."""
        if not self.taken:
            return 0.0
        self._clock += seconds * self.speed
        return seconds * min(self.taken, self.cores)


def play(costs: Costs, setting: Setting, steps: int) -> Played:
    """``steps`` environment steps of a run after its warm-up, without logs and evaluations."""
    machines = [_Machine(setting.cores) for _ in range(setting.nodes)]
    answered = [True] * setting.num_env
    played = Played(steps)

    def pass_until(who: int) -> float:
        """Let time pass until the learner has computed, or an environment has answered."""
        took = 0.0
        while True:
            pause, at = min((m.until_next(), i) for i, m in enumerate(machines))
            played.busy += sum(machine.pass_time(pause) for machine in machines)
            took += pause
            ended = machines[at].end()
            if ended != LEARNER:
                answered[ended] = True
            if ended == who:
                return took

    for event in _learner(costs, setting, steps):
        if isinstance(event, Work):
            if not event.seconds:
                continue
            machines[0].begin(LEARNER, event.seconds, event.cores)
            took = pass_until(LEARNER)
            played.learner[event.part] = played.learner.get(event.part, 0.0) + took
            played.seconds += took
        elif isinstance(event, Ask):
            answered[event.lane] = False
            machines[event.lane % setting.nodes].begin(event.lane, event.seconds)
        elif not answered[event.lane]:
            took = pass_until(event.lane)
            played.waited += took
            played.seconds += took
    return played


Event = Work | Ask | Wait


def _learner(costs: Costs, setting: Setting, steps: int) -> Iterator[Event]:
    """What the learner does in ``steps`` environment steps."""
    num, length = setting.num_env, costs.episode_length
    ages = [0 if setting.together else lane * length // num % length for lane in range(num)]
    lanes = _Lanes(costs, here=num == 1, slower=slower(costs, setting))
    starting = [lane for lane in range(num) if ages[lane] == 0]
    yield from lanes.start(starting)
    yield from lanes.started(starting)
    done = 0
    while done < steps:
        yield Work("act", costs.act(num))
        for lane in range(num):
            yield from lanes.ask(lane, costs.step_s + costs.render_s, "simulate")
        starting = []
        for lane in range(num):
            yield from lanes.receive(lane)
            yield Work("store", costs.add_s)
            ages[lane] += 1
            if ages[lane] == length:
                ages[lane] = 0
                starting.append(lane)
                yield from lanes.start([lane])
            if lane == num - 1:
                yield from lanes.started(starting)
            done += 1
            yield from _updates(costs, done)
            if done == steps:
                return


def slower(costs: Costs, setting: Setting) -> float:
    """How much longer environments take because of others that simulate on the same machine: as
    measured with all cores busy, and less in proportion with fewer. Updates were not slower."""
    beside = min(-(-setting.num_env // setting.nodes), setting.cores) - 1
    share = beside / (setting.cores - 1) if setting.cores > 1 else 0.0
    return 1 + (costs.crowded - 1) * share


def _updates(costs: Costs, done: int) -> Iterator[Event]:
    if done % costs.update_freq:
        return
    critic_updates = costs.num_critic_update - 1  # the last one updates the actor, too
    yield Work("sample", costs.num_critic_update * costs.sample_s)
    yield Work("update", critic_updates * costs.critic_s + costs.update_s, costs.threads)


@dataclass(frozen=True)
class _Lanes:
    """How environments are played: ``here``, by the learner itself, or in other processes."""

    costs: Costs
    here: bool
    slower: float

    def ask(self, lane: int, seconds: float, part: str) -> Iterator[Event]:
        if self.here:
            yield Work(part, seconds)
        else:
            yield Work("messages", self.costs.send_s)
            yield Ask(lane, self.slower * (seconds + self.costs.answer_s))

    def receive(self, lane: int) -> Iterator[Event]:
        if not self.here:
            yield Wait(lane)
            yield Work("messages", self.costs.receive_s)
        yield Work("observe", self.costs.observe_s)

    def start(self, lanes: list[int]) -> Iterator[Event]:
        for lane in lanes:
            yield from self.ask(lane, self.costs.reset_s, "reset")

    def started(self, lanes: list[int]) -> Iterator[Event]:
        for lane in lanes:
            yield from self.receive(lane)
