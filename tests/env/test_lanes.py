"""Environments that play at the same time, in processes of their own."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from env.config import EnvConfig
from env.core import EnvError, EpisodeLost
from env.lanes import LocalLane, Reply, open_lanes
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


def test_suites_of_one_environment_refuse_more() -> None:
    with pytest.raises(EnvError, match="num_env: 2, expected 1: suite remote has one environment"):
        open_lanes(EnvConfig(suite="remote"), 2)


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
