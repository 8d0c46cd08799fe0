"""Plays a run's environments and stores what they do: the only path of a step into the replay.

A round: the agent acts on all lanes' observations at once, and all actions are sent. The outcomes
are then received and stored lane by lane, always in the same order. Each is an environment step,
after which the caller may update the agent, while the lanes behind are still simulating. So a seed
gives the same run, whatever the timing of processes, and with one lane a round is one step.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch

from common_utils.finite import check_action, check_observed
from common_utils.seeding import seed_for
from common_utils.specs import BC_ACTION, CLOCK, TRAINING, Obs
from common_utils.stopwatch import Stopwatch
from env.core import EpisodeLost
from env.lanes import Lanes, Reply
from rl.agent import Agent
from rl.successes import Record

# observations of the lanes -> their actions, float32 [A] each
Choose = Callable[[Sequence[Obs]], Sequence[torch.Tensor]]


class Store(Protocol):
    """The part of ``rl.replay.ReplayBuffer`` that episodes go through."""

    def is_running(self, lane: int = 0) -> bool: ...
    def new_episode(self, obs: Obs, record: Record | None = None, lane: int = 0) -> None: ...
    def drop_episode(self, lane: int = 0) -> None: ...
    def add(
        self,
        obs: Obs,
        action: Any,
        reward: float,
        terminated: bool,
        truncated: bool,
        success: bool,
        record: Record | None = None,
        lane: int = 0,
    ) -> None: ...


class Ended(NamedTuple):
    """How an episode ended; ``lost``: why it was dropped, "" if it was stored."""

    length: int
    success: bool
    lost: str = ""


@dataclass
class Lane:
    """The episode that one environment plays."""

    number: int
    # its number among all episodes of the run; None until it is to begin
    episode: int | None = None
    length: int = 0
    success: bool = False
    # the observation to act on; empty while there is none
    obs: Obs = field(default_factory=dict)
    # what was chosen there, until its outcome is stored
    action: torch.Tensor | None = None
    # whether the start of the episode was asked for and has not come
    starting: bool = False

    @property
    def playing(self) -> bool:
        """Whether it has an episode, or will have as soon as it answers."""
        return self.starting or bool(self.obs)

    def end(self) -> None:
        """It has no episode any more."""
        self.episode, self.length, self.success = None, 0, False
        self.obs, self.action, self.starting = {}, None, False


class Playing(ABC):
    """What plays a run's environments and stores their steps: here (:class:`Collector`), or in the
    actor's process (``workspace.actor_play``)."""

    @abstractmethod
    def step(self, choose: Choose) -> Ended | None:
        """Store the next step, of actions that ``choose`` takes; returns how its episode ended, if
        it did."""

    @abstractmethod
    def restart(self, most: int | None = None) -> None:
        """Begin episodes where there are none, ``most`` playing at a time (default: all)."""

    @abstractmethod
    def drop(self) -> list[int]:
        """Forget what is playing; returns the lengths of episodes dropped."""

    @abstractmethod
    def updated(self) -> None:
        """The agent's weights have changed."""

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Everything but the replay's part."""

    @abstractmethod
    def load_state_dict(self, state: Mapping[str, Any]) -> list[int]:
        """Inverse of :meth:`state_dict`, after the replay was loaded; returns the lengths of
        episodes that are lost."""


class Collector(Playing):
    """See the module's docstring.

    Args:
        envs: the environments.
        agent: acts elsewhere; here its BC policies propose, and are asked once per observation.
        replay: where episodes go.
        watch: times "env", "rendering", "network", "act" and "add".
        seed: the run's; episode number k plays ``seed_for(seed, "train_env", k)``.
        recorded: cameras that are saved with successes and not sampled.
    """

    def __init__(
        self,
        envs: Lanes,
        agent: Agent,
        replay: Store,
        watch: Stopwatch,
        seed: int,
        recorded: Sequence[str] = (),
    ) -> None:
        self.envs, self.agent, self.replay, self.watch = envs, agent, replay, watch
        self._seed, self._recorded = seed, tuple(recorded)
        self.lanes = [Lane(number) for number in range(envs.num)]
        self.episodes = 0  # that have begun, or were begun and dropped; the next one's number
        self._turns: list[int] = []  # lanes of this round whose outcomes are not stored yet

    # ------------------------------------------------------------------ playing

    def step(self, choose: Choose) -> Ended | None:
        """Store the next lane's step, beginning a round if the last one is over; returns how the
        episode ended, if it did. At least one lane has an episode (:meth:`restart`)."""
        if not self._turns:
            self._begin_round(choose)
        lane = self.lanes[self._turns[0]]
        try:
            with self._watch_env():
                reply = self.envs.receive(lane.number)
        except EpisodeLost as error:
            del self._turns[0]
            return Ended(self._drop(lane), False, str(error))
        ended = self._store(lane, reply)
        del self._turns[0]
        return ended

    def _begin_round(self, choose: Choose) -> None:
        lanes = [lane for lane in self.lanes if lane.obs]
        for lane, action in zip(lanes, choose([lane.obs for lane in lanes]), strict=True):
            check_action(action.numpy(), self._seed_of(lane), lane.length)
            lane.action = action
        self._turns = [lane.number for lane in lanes]
        with self._watch_env():
            for lane in lanes:
                assert lane.action is not None
                self.envs.send(lane.number, lane.action.numpy())

    def _store(self, lane: Lane, reply: Reply) -> Ended | None:
        obs, reward, terminated, truncated, info = reply
        action = lane.action
        lane.length += 1
        with self.watch("act"):
            lane.obs, lane.action = self._observe(lane, obs, reward), None
        lane.success = lane.success or bool(info["success"])
        with self.watch("add"):
            outcome = (action, reward, terminated, truncated, lane.success)
            self.replay.add(lane.obs, *outcome, self._record(obs, info), lane.number)
        if not (terminated or truncated):
            return None
        ended = Ended(lane.length, lane.success)
        lane.end()
        return ended

    def restart(self, most: int | None = None) -> None:
        """Ask lanes without an episode to begin one, ``most`` lanes playing at a time (default:
        all). Between rounds, wait for the first observations of all that were asked and can
        begin now."""
        playing = sum(lane.playing for lane in self.lanes)
        for lane in self.lanes:
            if not lane.playing and (most is None or playing < most):
                self._start(lane)
                playing += 1
        if not self._turns:
            for lane in self.lanes:
                if lane.starting and self.envs.ready(lane.number):
                    self._receive_start(lane)

    def _start(self, lane: Lane) -> None:
        if lane.episode is None:  # else it was asked for, and never began
            lane.episode = self.episodes
            self.episodes += 1
        lane.length, lane.success, lane.starting = 0, False, True
        with self._watch_env():
            self.envs.reset(lane.number, self._seed_of(lane))

    def _receive_start(self, lane: Lane) -> None:
        with self._watch_env():
            reply = self.envs.receive(lane.number)
        with self.watch("act"):
            lane.obs = self._observe(lane, reply.obs)
        self.replay.new_episode(lane.obs, self._record(reply.obs, reply.info), lane.number)
        lane.starting = False

    def updated(self) -> None:
        """See :class:`Playing`; the agent that has changed acts itself."""

    def drop(self) -> list[int]:
        """Forget what is playing: lanes begin anew. Returns the lengths of episodes dropped."""
        self._turns = []
        begun = [lane for lane in self.lanes if self.replay.is_running(lane.number)]
        lengths = [self._drop(lane) for lane in begun]
        for lane in self.lanes:  # an episode that has not begun keeps its number
            lane.obs, lane.action, lane.starting = {}, None, False
        return lengths

    def _drop(self, lane: Lane) -> int:
        length = lane.length
        self.replay.drop_episode(lane.number)
        lane.end()
        return length

    # ------------------------------------------------------------------ observations

    def _seed_of(self, lane: Lane) -> int:
        assert lane.episode is not None  # it plays one
        return seed_for(self._seed, "train_env", lane.episode, bits=31)

    def _observe(self, lane: Lane, obs: dict[str, np.ndarray], reward: float = 0.0) -> Obs:
        """Observation as tensors, with the BC policies' proposals (computed once)."""
        seed, step = self._seed_of(lane), lane.length
        check_observed(self.envs.spec.task, seed, step, obs, reward)
        out = {k: torch.from_numpy(v) for k, v in obs.items()}
        if self.agent.needs_clock:
            assert lane.episode is not None
            out[CLOCK] = torch.tensor([TRAINING + lane.episode, step])
        if self.agent.num_stored:
            device = self.agent.device
            batched = {k: v.unsqueeze(0).to(device) for k, v in out.items() if k != CLOCK}
            if CLOCK in out:
                batched[CLOCK] = out[CLOCK].unsqueeze(0)
            out[BC_ACTION] = self.agent.propose(batched)[0].cpu()
            check_action(out[BC_ACTION].numpy(), seed, step, "the BC policy")
        return out

    def _record(self, obs: dict[str, np.ndarray], info: dict[str, Any]) -> Record:
        """What is saved of an observation besides what is sampled (save_per_success)."""
        return {**info.get("recorded", {}), **{c: obs[c][:3] for c in self._recorded}}

    @contextmanager
    def _watch_env(self) -> Iterator[None]:
        """Times the environment, and apart from it what it draws, and messages on their way."""
        drawn, sent = self.envs.render_seconds, self.envs.network_seconds
        with self.watch("env"):
            yield
        self.watch.move("env", "rendering", self.envs.render_seconds - drawn)
        self.watch.move("env", "network", self.envs.network_seconds - sent)

    # ------------------------------------------------------------------ resume

    def state_dict(self) -> dict[str, Any]:
        """Everything but the replay's part; also in the middle of a round."""
        return {
            "episodes": self.episodes,
            "turns": list(self._turns),
            "lanes": [
                {k: v for k, v in vars(lane).items() if k != "number"} for lane in self.lanes
            ],
            "envs": self.envs.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> list[int]:
        """Inverse of :meth:`state_dict`, after the replay was loaded. Environments that cannot be
        brought back lose their episodes; returns the lengths of those."""
        self.episodes, self._turns = state["episodes"], list(state["turns"])
        for lane, saved in zip(self.lanes, state["lanes"], strict=True):
            for name, value in saved.items():
                setattr(lane, name, value)
        if not self.envs.replayable:
            return self.drop()
        self.envs.load_state_dict(state["envs"])
        return []


def state_of_one_lane(state: Mapping[str, Any], running: bool) -> dict[str, Any]:
    """The collector's state in a state of a version that had one environment and no lanes.

    running: whether the replay has an unfinished episode.
    """
    counters = state["counters"]
    lane = {
        "episode": counters["env_episode"],
        "length": counters["episode_len"],
        "success": counters["episode_success"],
        "obs": state["obs"] if running else {},
        "action": None,
        "starting": False,
    }
    envs = [{**state["env"], "asked": None}]
    return {"episodes": counters["env_episode"] + 1, "turns": [], "lanes": [lane], "envs": envs}


def batched(observations: Sequence[Obs]) -> Obs:
    """[B, ...] of B observations."""
    return {k: torch.stack([obs[k] for obs in observations]) for k in observations[0]}


def acting(act: Callable[[Obs], torch.Tensor]) -> Choose:
    """Chooses for several observations in one batch, and for a single one without a batch."""

    def choose(observations: Sequence[Obs]) -> Sequence[torch.Tensor]:
        if len(observations) == 1:
            return [act(observations[0])]
        return list(act(batched(observations)))

    return choose
