"""Environments that play at the same time, in processes of their own."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from common_utils.errors import UserError
from env.config import EnvConfig
from env.core import EnvError, EpisodeLost
from env.lanes import Lanes, LocalLane, Reply, open_lanes
from env.shared_arrays import SharedConnection
from env.worker_lanes import TRIES, WorkerLanes
from tests.env.lane_envs import HORIZON, LaneEnv

Open = Callable[..., WorkerLanes]
MAKER = "tests.env.lane_envs:make"
ACTIONS = np.random.default_rng(0).uniform(-1, 1, (2, HORIZON, 2)).astype(np.float32)


@pytest.fixture
def workers() -> Iterator[Open]:
    opened: list[WorkerLanes] = []

    def start(num: int = 1, timeout: float = 60, maker: str = MAKER, **cfg: Any) -> WorkerLanes:
        opened.append(WorkerLanes(cfg, num, timeout, maker))
        return opened[-1]

    yield start
    for lanes in opened:
        lanes.close()


def process(lanes: WorkerLanes, lane: int) -> int:
    return lanes._lanes[lane].worker.process.pid


def assert_reply(one: Reply, other: Reply) -> None:
    assert one[1:4] == other[1:4] and one.info["success"] is other.info["success"]
    assert one.obs.keys() == other.obs.keys() and one.info.keys() == other.info.keys()
    for key, value in one.obs.items():
        assert value.dtype == other.obs[key].dtype and value.flags.writeable
        np.testing.assert_array_equal(value, other.obs[key])
    assert one.info["recorded"]["model"] == other.info["recorded"]["model"]
    np.testing.assert_array_equal(*(x.info["recorded"]["sim_state"] for x in (one, other)))


def here(seed: int, actions: np.ndarray) -> list[Reply]:
    """The replies of an episode that is played in this process."""
    lane = LocalLane(LaneEnv({}))
    lane.reset(0, seed)
    replies = [lane.receive(0)]
    for action in actions:
        lane.send(0, action)
        replies.append(lane.receive(0))
    return replies


def test_workers_that_are_killed_or_hang_change_nothing(workers: Open) -> None:
    lanes, said = workers(2, timeout=1.0), list[str]()
    lanes.listen(said.append, lambda: None)
    expected = [here(7 + lane, ACTIONS[lane]) for lane in range(2)]
    for lane in range(2):
        lanes.reset(lane, 7 + lane)
    for lane in range(2):
        assert_reply(lanes.receive(lane), expected[lane][0])
    for step in range(HORIZON):
        if step == 2:
            os.kill(process(lanes, 0), signal.SIGKILL)  # before it is asked
        if step == 4:
            os.kill(process(lanes, 1), signal.SIGSTOP)
        for lane in range(2):
            lanes.send(lane, ACTIONS[lane][step])
        if step == 3:
            os.kill(process(lanes, 0), signal.SIGKILL)  # after it is asked
        for lane in range(2):
            assert_reply(lanes.receive(lane), expected[lane][step + 1])
    assert len(said) == 3 and "step 2 of the episode of seed 7" in said[0]
    assert "environment 1" in said[2] and "did not answer for 2 s" in said[2]
    state = lanes.state_dict()
    assert [len(lane["actions"]) for lane in state] == [HORIZON] * 2


def test_a_state_holds_what_is_not_answered(workers: Open) -> None:
    lanes, other = workers(2), workers(2)
    lanes.reset(0, 7), lanes.reset(1, 8)
    for step in range(2):
        lanes.receive(0)
        lanes.send(0, ACTIONS[0][step])
    state = lanes.state_dict()
    assert [lane["asked"] is None for lane in state] == [False, False]
    other.load_state_dict(state)
    assert_reply(other.receive(0), here(7, ACTIONS[0])[2])
    assert_reply(other.receive(1), here(8, ACTIONS[1])[0])
    local = LocalLane(LaneEnv({}))
    local.load_state_dict(state[:1])
    assert_reply(local.receive(0), here(7, ACTIONS[0])[2])
    assert local.state_dict() == other.state_dict()[:1]


@pytest.mark.parametrize("times", [TRIES - 1, TRIES])
def test_a_worker_that_dies_again_and_again(times: int, workers: Open, tmp_path: Path) -> None:
    lanes = workers(fault="die", at=2, times=times, folder=str(tmp_path))
    lanes.listen(lambda line: None, lambda: None)
    lanes.reset(0, 7)
    lanes.receive(0)
    lanes.send(0, ACTIONS[0][0])
    lanes.receive(0)
    lanes.send(0, ACTIONS[0][1])
    if times < TRIES:
        assert_reply(lanes.receive(0), here(7, ACTIONS[0])[2])
        return
    with pytest.raises(
        EnvError, match="lost 3 times at step 1 of the episode of seed 7: env.*status 3"
    ):
        lanes.receive(0)


def test_an_episode_that_cannot_be_played_again_is_lost(workers: Open) -> None:
    lanes = workers(replayable=False)
    lanes.listen(lambda line: None, lambda: None)
    assert not lanes.replayable
    lanes.reset(0, 7)
    lanes.receive(0)
    os.kill(process(lanes, 0), signal.SIGKILL)
    lanes.send(0, ACTIONS[0][0])
    with pytest.raises(EpisodeLost, match="environment 0 .*killed by signal 9"):
        lanes.receive(0)
    lanes.reset(0, 8)
    assert_reply(lanes.receive(0), here(8, ACTIONS[0])[0])


def test_mistakes_are_said_and_not_tried_again(workers: Open, tmp_path: Path) -> None:
    with pytest.raises(EnvError, match="environment 0 failed while building.*no such task"):
        workers(maker="tests.env.lane_envs:refuse")
    lanes = workers()
    lanes.send(0, ACTIONS[0][0])
    with pytest.raises(EnvError, match="no episode is running"):
        lanes.receive(0)
    lanes = workers(fault="bug", at=1, folder=str(tmp_path))
    with pytest.raises(EnvError, match="nothing was asked"):
        lanes.receive(0)
    lanes.reset(0, 7)
    lanes.receive(0)
    lanes.send(0, ACTIONS[0][0])
    with pytest.raises(
        EnvError, match="failed while taking a step.*\n[^|]*ZeroDivisionError: a bug"
    ):
        lanes.receive(0)
    assert len(list(tmp_path.iterdir())) == 1


def pendulum(**more: Any) -> EnvConfig:
    task = "Pendulum-v1" if "gym_vector" not in more else "lanes/Pendulum-v0"
    return EnvConfig(
        suite="gymnasium", task=task, use_state=1, state_stack=2, episode_length=HORIZON,
        gym_success_key="truncated", **more,
    )  # fmt: skip


def swinging(num_envs: int, **kwargs: Any) -> SyncVectorEnv:
    """A task's own vector environment."""
    mode = kwargs.get("mode", AutoresetMode.DISABLED)
    one = partial(gymnasium.make, "Pendulum-v1", max_episode_steps=-1)
    vector = SyncVectorEnv([one] * num_envs, autoreset_mode=mode or AutoresetMode.DISABLED)
    vector.metadata = {**vector.metadata, "autoreset_mode": mode}
    return vector


@pytest.mark.parametrize("vector", ["sync", "vector_entry_point"])
def test_a_vector_environment_plays_as_single_ones(vector: str) -> None:
    entry = {
        "vector_entry_point": swinging,
        "entry_point": gymnasium.spec("Pendulum-v1").entry_point,
    }
    gymnasium.registry.pop("lanes/Pendulum-v0", None)
    gymnasium.register("lanes/Pendulum-v0", **entry)
    lanes = open_lanes(pendulum(gym_vector=vector), 3)
    assert not lanes.replayable and "3 environments in SyncVectorEnv" in lanes.notes[0]
    singles = [open_lanes(pendulum()) for _ in range(3)]
    rng = np.random.default_rng(0)

    def ask(lane: int, seed: int | None = None) -> None:
        action = rng.uniform(-1, 1, 1).astype(np.float32)
        for player, at in ((lanes, lane), (singles[lane], 0)):
            player.reset(at, seed) if seed is not None else player.send(at, action)

    def compare(lane: int) -> bool:
        reply, single = lanes.receive(lane), singles[lane].receive(0)
        np.testing.assert_array_equal(reply.obs["state"], single.obs["state"])
        assert reply[1:4] == single[1:4] and reply.info == single.info
        return reply.truncated

    playing = [0, 2]  # 1 waits for a few rounds
    for lane in playing:
        ask(lane, 5 + lane)
    for lane in playing:
        compare(lane)
    for number in range(2 * HORIZON):
        for lane in playing:
            ask(lane)
        over = [lane for lane in playing if compare(lane)]
        if number == 2:
            over, playing = [*over, 1], [0, 1, 2]
        for lane in over:
            ask(lane, 100 * number + lane)
        for lane in over:
            compare(lane)
    for player in (lanes, *singles):
        player.close()


class _Counting(gymnasium.Env):
    """Counts: the state is (episode, step), the simulator's own limit 4; the reward is the step."""

    action_space = gymnasium.spaces.Box(-1, 1, (1,), np.float32)
    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float32)
    episode = -1

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self.episode, self.steps = self.episode + 1, 0
        return np.array([self.episode, 0], np.float32), {}

    def step(self, action: Any) -> Any:
        self.steps += 1
        obs = np.array([self.episode, self.steps], np.float32)
        return obs, float(action[0]), False, self.steps == LIMIT, {"even": self.steps % 2 == 0}


LIMIT = 4


def self_resetting(mode: AutoresetMode, num: int, horizon: int = LIMIT, **more: Any) -> Lanes:
    vector = partial(SyncVectorEnv, autoreset_mode=mode)
    gymnasium.registry.pop("lanes/Counting-v0", None)
    gymnasium.register(
        "lanes/Counting-v0",
        entry_point=_Counting,
        vector_entry_point=lambda num_envs, **_: vector([_Counting] * num_envs),
    )
    cfg = EnvConfig(
        suite="gymnasium", task="lanes/Counting-v0", use_state=1, episode_length=horizon,
        gym_success_key="even", gym_vector="vector_entry_point", **{"end_on_success": 0, **more},
    )  # fmt: skip
    return open_lanes(cfg, num)


def episodes_of(lanes: Lanes, rounds: int, joins: int = 0) -> list[list[list[Reply]]]:
    """Of each lane its episodes, played in rounds as the collector does; the last lane joins in
    after ``joins`` rounds."""
    found: list[list[list[Reply]]] = [[] for _ in range(lanes.num)]
    playing, asked = set[int](), set[int]()
    for number in range(rounds):
        for lane in range(lanes.num - (number < joins)):
            if lane not in playing | asked:
                lanes.reset(lane, 100 * number + lane)
                asked.add(lane)
        for lane in sorted(asked):
            if lanes.ready(lane):
                found[lane].append([lanes.receive(lane)])
                asked.remove(lane)
                playing.add(lane)
        turns = sorted(playing)
        for lane in turns:
            lanes.send(lane, np.full(1, 0.1 * (lane + 1), np.float32))
        for lane in turns:
            reply = lanes.receive(lane)
            found[lane][-1].append(reply)
            if reply.terminated or reply.truncated:
                playing.remove(lane)
    lanes.close()
    return found


@pytest.mark.parametrize("mode", [AutoresetMode.SAME_STEP, AutoresetMode.NEXT_STEP])
def test_a_simulator_that_resets_by_itself(mode: AutoresetMode) -> None:
    """Each episode is whole, from its first observation to its last, and of the simulator's."""
    lanes = self_resetting(mode, 2)
    assert not lanes.replayable and f"autoreset mode {mode.value}" in lanes.notes[1]
    for lane, episodes in enumerate(episodes_of(lanes, 13)):
        assert len(episodes) >= 3
        for number, episode in enumerate(episodes[:-1]):
            states = [reply.obs["state"].tolist() for reply in episode]
            assert states == [[number, step] for step in range(LIMIT + 1)]
            assert [r.truncated for r in episode] == [False] * LIMIT + [True]
            assert [r.reward for r in episode[1:]] == pytest.approx([0.1 * (lane + 1)] * LIMIT)
            assert [r.info["success"] for r in episode[1:]] == [False, True] * 2


@pytest.mark.parametrize("mode", [AutoresetMode.SAME_STEP, AutoresetMode.NEXT_STEP])
@pytest.mark.parametrize("more", [{"horizon": 3}, {"end_on_success": 1}, {"joins": 2}])
def test_what_the_simulator_plays_on_is_not_stored(
    mode: AutoresetMode, more: dict[str, int]
) -> None:
    """Our limit, a success, or a lane that is not wanted yet: episodes still begin at their start,
    and end where they should."""
    joins = more.pop("joins", 0)
    length = 3 if "horizon" in more else 2 if "end_on_success" in more else LIMIT
    lanes = self_resetting(mode, 2, **more)
    if "horizon" in more:
        assert lanes.notes[1].endswith("its steps after episode_length 3 are lost")
    found = episodes_of(lanes, 24, joins)
    for episodes in found:
        assert len(episodes) >= 3
        for episode in episodes[:-1]:
            states = [reply.obs["state"].tolist() for reply in episode]
            assert [step for _, step in states] == list(range(length + 1))
            assert len({number for number, _ in states}) == 1
    assert found[1][0][0].obs["state"].tolist() == [int(joins > 0), 0]


def test_a_simulator_must_deliver_last_observations_and_end_episodes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("env.self_resetting.PATIENCE", 2)
    lanes = self_resetting(AutoresetMode.NEXT_STEP, 1, horizon=1)
    lanes.reset(0, 1), lanes.receive(0)
    lanes.send(0, ACTIONS[0][0][:1])
    assert lanes.receive(0).truncated
    lanes.reset(0, 2)
    with pytest.raises(EnvError, match="has not ended an episode within 2 steps, expected a time"):
        lanes.receive(0)
    lanes.close()
    lanes = self_resetting(AutoresetMode.SAME_STEP, 1)
    lanes._vector._add_info = lambda infos, *_: infos  # type: ignore[attr-defined]
    lanes.reset(0, 1), lanes.receive(0)
    with pytest.raises(EnvError, match="found no final_obs of an episode that has ended"):
        for _ in range(LIMIT):
            lanes.send(0, ACTIONS[0][0][:1])
            lanes.receive(0)
    lanes.close()


def test_vector_environments_that_cannot_be_used_are_refused() -> None:
    single = gymnasium.spec("Pendulum-v1").entry_point
    vector = partial(swinging, mode=None)
    gymnasium.registry.pop("lanes/Pendulum-v0", None)
    gymnasium.register("lanes/Pendulum-v0", entry_point=single, vector_entry_point=vector)
    with pytest.raises(EnvError, match="autoreset mode None, expected metadata.*Disabled"):
        open_lanes(pendulum(gym_vector="vector_entry_point"), 2)
    with pytest.raises(EnvError, match="action_repeat: 2, expected 1"):
        open_lanes(pendulum(gym_vector="sync", action_repeat=2), 2)
    with pytest.raises(EnvError, match="gym.vector: 'sync', expected none with suite particle"):
        open_lanes(EnvConfig(suite="particle", task="PARTICLE_2d", gym_vector="sync"), 2)


def test_suites_of_one_environment_refuse_more() -> None:
    with pytest.raises(EnvError, match="num_env: 2, expected 1: suite remote has one environment"):
        open_lanes(EnvConfig(suite="remote"), 2)
    with pytest.raises(EnvError, match="rollout: ray, expected process: suite remote plays in"):
        open_lanes(EnvConfig(suite="remote"), way="ray")
    with pytest.raises(EnvError, match="rollout: ray, expected process: gym.vector sync plays in"):
        open_lanes(pendulum(gym_vector="sync"), 2, way="ray")


def test_without_ray_the_command_that_installs_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(
        UserError,
        match="rollout or engine ray: the package 'ray' is not installed; expected what this "
        "installs: pip install -r requirements-scale.txt",
    ):
        open_lanes(EnvConfig(suite="particle", task="PARTICLE_2d"), 2, way="ray")


def test_arrays_cross_in_memory() -> None:
    (one, other), memory = socket.socketpair(), os.memfd_create("test")
    ours = SharedConnection(one.detach(), memory)
    theirs = SharedConnection(other.detach(), os.dup(memory))
    rng = np.random.default_rng(0)
    messages: list[Any] = [
        ("obs", {"a": rng.normal(size=(3, 4)), "b": [np.arange(5, dtype=np.uint8), 1, "x"]}),
        ("big", np.asfortranarray(rng.integers(0, 9, (300, 700)))),  # the memory grows
        ("none", np.zeros((0, 3), np.float32), np.float32(2), np.array("text"), None),
        ("scalar", np.array(3.5)),
    ]
    threading.Thread(target=lambda: [theirs.send(theirs.recv()) for _ in messages]).start()
    for message in messages:
        ours.send(message)
        back = ours.recv()
        assert repr(back) == repr(message)
        for x, y in zip(back, message, strict=True):
            if isinstance(x, np.ndarray):
                assert x.dtype == y.dtype
                np.testing.assert_array_equal(x, y)
    assert ours.poll() is False
    ours.close(), ours.close(), theirs.close()
