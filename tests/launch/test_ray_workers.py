"""Rollouts, evaluations and demonstrations on a Ray cluster of two nodes on this machine: they are
those of local processes, also if a node is killed in the middle of an episode. pytest -m ray"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

import train_rl
from common_utils.errors import UserError
from env.config import EnvConfig
from env.core import EnvError
from env.lanes import LocalLane, open_lanes
from env.worker_lanes import RayLanes
from evaluate import eval as evaluation
from evaluate.multi_process_eval import EvalPool
from tests.env.lane_envs import LaneEnv
from tests.ray_cluster import two_nodes
from tests.runs import assert_same_run
from tests.train.test_parallel import config
from tools.collect_oracle import MainConfig as OracleConfig
from tools.collect_oracle import collect
from tools.generate_demos import MainConfig as DemosConfig
from tools.generate_demos import generate
from tools.recording import Parts

pytestmark = pytest.mark.ray
CPUS = 4  # of a node


class Nodes:
    """A cluster of two nodes, of which the second may be killed."""

    def __init__(self, cluster: Any, other: Any) -> None:
        self.cluster, self.other = cluster, other

    def lose_one(self) -> None:
        """Kill a node with all that is on it, at once."""
        self.cluster.remove_node(self.other, allow_graceful=False)

    def restore(self) -> None:
        """Another node in its place."""
        self.other = self.cluster.add_node(num_cpus=CPUS)
        self.cluster.wait_for_nodes()


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    """A cluster; whoever kills a node restores it."""
    with two_nodes(CPUS) as (cluster, other):
        yield Nodes(cluster, other)


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with four environments in processes of this machine."""
    save_dir = tmp_path_factory.mktemp("four") / "run"
    train_rl.run(config(save_dir, num_env=4))
    return save_dir


def at_step(monkeypatch: pytest.MonkeyPatch, number: int, do: Any) -> None:
    """``do`` before an environment step of a run, warm-up included."""
    step, done = train_rl.Workspace.step_env, []

    def stepping(work: train_rl.Workspace, choose: Any) -> bool:
        done.append(1)
        if len(done) == number:
            do()
        return step(work, choose)

    monkeypatch.setattr(train_rl.Workspace, "step_env", stepping)


def test_an_address_without_a_cluster_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and nobody listens there
        monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{taken.getsockname()[1]}")
        with pytest.raises(UserError, match="no Ray cluster at 127.0.0.1:.* refused.*ray start"):
            open_lanes(EnvConfig(suite="particle", task="PARTICLE_2d"), 2, way="ray")


def test_a_run_that_loses_a_node_is_the_run_of_processes(
    nodes: Nodes, four: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost: list[str] = []
    for attempt in range(4):  # Ray may have put all environments on the node that stays
        run = tmp_path / f"run{attempt}"
        with monkeypatch.context() as patch:
            at_step(patch, 61, nodes.lose_one)  # in the middle of episodes, and of a round
            train_rl.run(config(run, num_env=4, rollout="ray"))
        nodes.restore()
        assert_same_run(four, run)
        log = (run / "train.log").read_text()
        assert "4 environments, each in a Ray actor of its own (2 nodes, 8 CPUs)" in log
        lost = re.findall(r"environment \d \(Ray actor \w+\) was lost while", log)
        assert len(lost) <= 3 and log.count("a new worker was brought to") == len(lost)
        if lost:
            break
    assert lost


@pytest.mark.parametrize("first, then", [("ray", "process"), ("process", "ray")])
def test_a_run_is_resumed_elsewhere(
    first: str, then: str, nodes: Nodes, four: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGTERM saves its state, although Ray has a handler of its own."""
    with monkeypatch.context() as patch:
        at_step(patch, 62, lambda: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(SystemExit, match="SIGTERM at step .*state saved"):
            train_rl.run(config(tmp_path / "run", num_env=4, rollout=first))
    train_rl.run(config(tmp_path / "run", num_env=4, rollout=then, resume=1))
    assert_same_run(four, tmp_path / "run")


def test_one_environment_elsewhere_is_that_of_the_trainer(nodes: Nodes, tmp_path: Path) -> None:
    train_rl.run(config(tmp_path / "here", num_train_step=22))
    train_rl.run(config(tmp_path / "ray", num_train_step=22, rollout="ray"))
    assert_same_run(tmp_path / "here", tmp_path / "ray")


def test_a_hung_actor_is_replaced_and_a_fault_is_told(nodes: Nodes, tmp_path: Path) -> None:
    maker, actions = "tests.env.lane_envs:make", np.full((3, 2), 0.5, np.float32)
    said: list[str] = []
    lanes = RayLanes({"fault": "hang", "at": 2, "folder": str(tmp_path)}, 1, 2.0, maker)
    lanes.listen(said.append, lambda: None)
    local = LocalLane(LaneEnv({}))
    for player in (lanes, local):
        player.reset(0, 7)
    for action in actions:
        one, other = lanes.receive(0), local.receive(0)
        np.testing.assert_array_equal(one.obs["cam"], other.obs["cam"])
        assert one.obs["cam"].flags.writeable and one[1:4] == other[1:4]
        for player in (lanes, local):
            player.send(0, action)
    lanes.close()
    assert len(said) == 1 and "did not answer for 4 s while taking a step" in said[0]
    with pytest.raises(EnvError, match="failed while building.*no such task"):
        RayLanes({}, 1, 60, "tests.env.lane_envs:refuse")
    with pytest.raises(EnvError, match="num_env: 9, expected at most 8"):
        RayLanes({}, 9, 60, maker)


class Wanders:
    """Draws its actions from each game's generator."""

    stochastic_eval = True

    def act(self, obs: Any, *, generator: Any, **_: Any) -> Any:
        import torch

        return torch.rand(2, generator=generator) * 2 - 1


def test_games_of_a_lost_node_are_played_again(nodes: Nodes) -> None:
    cfg = {"suite": "particle", "task": "PARTICLE_2d", "use_state": 1, "episode_length": 60}
    said: list[str] = []
    lost: list[int] = []

    def pause() -> None:
        games = [member.task for member in pool._crew.members]
        if not lost and all(game is not None and game.length > 5 for game in games):
            lost.append(1)
            nodes.lose_one()

    with EvalPool(cfg, 3, engine="ray", timeout=60) as pool, EvalPool(cfg, 0) as here:
        pool.say = said.append
        assert pool.spec.suite == "particle"
        while not all(member.built for member in pool._crew.members):
            pool._crew.answers()
        found = pool.run(Wanders(), 12, 5, pause=pause)
        want = here.run(Wanders(), 12, 5)
    nodes.restore()
    for field in ("scores", "successes", "lengths", "seeds"):
        np.testing.assert_array_equal(getattr(found, field), getattr(want, field))
    assert any("was lost while playing seed" in line for line in said)


def test_the_program_evaluates_on_the_cluster(nodes: Nodes, four: Path, tmp_path: Path) -> None:
    def outcomes(name: str, *options: str) -> Any:
        weight, out = str(four / "latest.pt"), str(tmp_path / name)
        games = ["--num_game", "5", "--one_by_one", "1", "--device", "cpu"]
        assert evaluation.main(["--weight", weight, *games, "--out", out, *options]) == 0
        return json.loads((tmp_path / name).read_text())

    there = outcomes("ray", "--engine", "ray", "--mp", "3")
    assert there == outcomes("here", "--mp", "2")


def contents(path: Path) -> dict[str, Any]:
    """Every array and attribute of a file."""
    found: dict[str, Any] = {}

    def note(name: str, item: h5py.Group | h5py.Dataset) -> None:
        found.update({f"{name}@{k}": str(v) for k, v in item.attrs.items()})
        if isinstance(item, h5py.Dataset):
            found[name] = (str(item.dtype), item.shape, item[()].tobytes())

    with h5py.File(path) as file:
        note("", file)
        file.visititems(note)
    return found


def test_demonstrations_of_a_lost_node_are_made_again(
    nodes: Nodes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add = Parts.add

    def losing(self: Parts, number: int, success: bool) -> None:
        add(self, number, success)
        if self.tried == 2:
            nodes.lose_one()

    options: Any = {"task": "PARTICLE_2d", "num": 12, "replicas": 3}
    with monkeypatch.context() as patch:
        patch.setattr(Parts, "add", losing)
        file = collect(OracleConfig(**options, engine="ray", out=str(tmp_path / "ray")))
    nodes.restore()
    assert contents(file) == contents(collect(OracleConfig(**options, out=str(tmp_path / "here"))))


def test_robosuite_demonstrations_are_those_of_processes(nodes: Nodes, tmp_path: Path) -> None:
    options: Any = {"task": "Lift", "num": 2, "cameras": [], "workers": 1}
    there = generate(DemosConfig(**options, engine="ray", out=str(tmp_path / "ray")))
    options["workers"] = 0
    assert contents(there) == contents(generate(DemosConfig(**options, out=str(tmp_path / "h"))))
