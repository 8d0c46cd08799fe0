"""RL in an environment of another process: the same bits, lost connections, a person's button."""

from __future__ import annotations

import os
import re
import shlex
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import train_bc
import train_rl
from common_utils import run_config
from common_utils.run_config import ConfigError
from env.core import EnvGone
from evaluate import eval as evaluation
from tests.docs.commands import commands, module_of
from tests.env.served import PATIENCE, REPO, Serve, Server, servers
from tests.runs import assert_same_run, metrics
from tests.train import small
from workspace.build_agent import load_model

HALF, WHOLE = 30, 60


@pytest.fixture
def serve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Serve]:
    monkeypatch.delenv("IBRL_TOKEN", raising=False)
    with servers(tmp_path) as start:
        yield start


def config(save_dir: Path, steps: int, **more: Any) -> train_rl.MainConfig:
    return small.config(save_dir, steps, **{"episode_length": 8, "log_per_step": HALF, **more})


def arm(server: Server, save_dir: Path, steps: int, **more: Any) -> train_rl.MainConfig:
    options = {
        "suite": "remote",
        "task_name": "Arm",
        "remote.url": server.url,
        "remote.retry_for": 30,
        "gym.state_key": "joints",
        "num_eval_episode": 0,
        **more,
    }
    return config(save_dir, steps, **options)


def episodes(work: train_rl.Workspace) -> list[np.ndarray]:
    """The states of each episode in the replay, [T, S]."""
    replay = work.replay
    return [replay._episode_frames(i)["obs"]["state"] for i in range(replay.size())]


def assert_no_gap(work: train_rl.Workspace) -> None:
    """The arm's first joint counts the steps of an episode of the robot."""
    for states in episodes(work):
        assert states[:, 0].tolist() == list(range(len(states)))


def test_a_remote_run_is_the_local_one(serve: Serve, tmp_path: Path) -> None:
    """Evaluations in the middle of episodes, a server that was restarted, and a resumption."""
    pendulum = {"task_name": "Pendulum-v1", "gym.success_key": "truncated"}
    train_rl.run(config(tmp_path / "here", WHOLE, suite="gymnasium", **pendulum))
    server = serve("my_robots:make_pendulum", "--deterministic", "1")
    remote = {"suite": "remote", "remote.url": server.url, "remote.retry_for": 30, **pendulum}
    train_rl.run(config(tmp_path / "there", HALF, **remote, mp_eval=1))
    server.kill()
    server.start()
    work = train_rl.run(config(tmp_path / "there", WHOLE, **remote, mp_eval=1, resume=1))
    assert_same_run(tmp_path / "here", tmp_path / "there")
    assert work.watch.seconds["network"] > 0


def test_a_run_goes_on_after_a_lost_connection(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = serve("my_robots:make_arm")
    step_env, lost = train_rl.Workspace.step_env, []

    def losing(work: train_rl.Workspace, choose: Any) -> bool:
        if work.play.lanes[0].length == 3 and work.global_step >= 10 and not lost:
            lost.append(work.global_step)
            server.kill()
            threading.Timer(0.3, server.start).start()
        return step_env(work, choose)

    monkeypatch.setattr(train_rl.Workspace, "step_env", losing)
    work = train_rl.run(arm(server, tmp_path / "run", WHOLE))
    assert lost and work.global_step == WHOLE
    assert_no_gap(work)
    # one of warm-up, and 60 steps, of which 3 and the one that was lost are in none
    assert [len(states) for states in episodes(work)] == [8] * 8
    log = (tmp_path / "run" / "train.log").read_text()
    assert "the connection was lost" in log and "next try in 1 s" in log
    assert "answers" in log and "note: 3 steps of an episode are dropped" in log


def test_a_run_whose_robot_is_gone_is_saved_and_resumes(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    server, run = serve("my_robots:make_arm"), tmp_path / "run"
    step_env = train_rl.Workspace.step_env

    def losing(work: train_rl.Workspace, choose: Any) -> bool:
        if work.global_step == 20:
            server.kill()
        return step_env(work, choose)

    with monkeypatch.context() as patch:
        patch.setattr(train_rl.Workspace, "step_env", losing)
        with pytest.raises(EnvGone, match=r"tried for 1 s.*step 20: state saved.*--resume 1"):
            train_rl.run(arm(server, run, WHOLE, **{"remote.retry_for": 1}))
    assert "error: remote.url: ws://" in (run / "train.log").read_text()
    before = server.port
    server.options[1] = "0"  # the robot comes back at another address
    server.start()
    server.port = int(server.lines[-2].rpartition(":")[2])
    server.url = f"ws://127.0.0.1:{server.port}"
    assert server.port != before
    work = train_rl.run(arm(server, run, WHOLE, resume=1))
    assert work.global_step == WHOLE and metrics(run)[-1]["step"] == WHOLE
    assert_no_gap(work)
    # a state in the middle of an episode: that one is dropped, whoever stopped the run
    done = episodes(work)
    work = train_rl.run(arm(server, run, WHOLE + 10, resume=1))
    assert "4 steps of an episode are dropped" in (run / "train.log").read_text()
    assert all(np.array_equal(a, b) for a, b in zip(done, episodes(work), strict=False))
    assert_no_gap(work)
    # and its checkpoint can be evaluated, by one process whatever --mp says
    monkeypatch.setattr("sys.argv", ["eval"])
    assert evaluation.main(["--weight", str(run / "model0.pt"), "--num_game", "2"]) == 0
    assert "success 0.000" in capsys.readouterr().out


def test_a_success_that_a_person_reports_is_learned_from(serve: Serve, tmp_path: Path) -> None:
    server = serve("my_robots:make_arm")
    pressed: list[int] = []

    def person() -> None:
        end = time.monotonic() + PATIENCE
        while not pressed and time.monotonic() < end:
            if server.http("/success")[0] == 200:
                pressed.append(1)
            time.sleep(0.002)

    thread = threading.Thread(target=person)
    thread.start()
    work = train_rl.run(arm(server, tmp_path / "run", WHOLE))
    thread.join()
    assert pressed and work.replay.num_success == 1
    lengths = [len(states) for states in episodes(work)]
    (short,) = [i for i, length in enumerate(lengths) if length < 8] or [len(lengths) - 1]
    reward = work.replay._episode_frames(short)["reward"]
    assert reward[-1] == 1.0 and (reward[:-1] == 0.25).all()
    table = work.replay._core.meta()["episodes"]
    assert table[short, 1], "terminated: nothing is bootstrapped"
    assert server.wait_for("steps, success by hand")


def test_an_address_in_a_checkpoint_is_not_trusted(tmp_path: Path, serve: Serve) -> None:
    server = serve("my_robots:make_arm")
    train_rl.run(arm(server, tmp_path / "run", 10))
    path = tmp_path / "run" / "cfg.yaml"
    path.write_text(path.read_text().replace(server.url, "ws://192.0.2.1:80"))
    with pytest.raises(ConfigError, match="cfg.yaml': names the environment at 'ws://192.0.2.1:80"):
        load_model(str(tmp_path / "run" / "model0.pt"))
    path.write_text(path.read_text().replace("ws://192.0.2.1:80", server.url))
    _, env, _ = load_model(str(tmp_path / "run" / "model0.pt"))
    env.close()


def test_the_documented_robot_trains(tmp_path: Path) -> None:
    page = (REPO / "docs" / "remote.md").read_text()
    (program,) = re.findall(r"```python\n(# my_robot.py\n.*?)```", page, re.S)
    (tmp_path / "my_robot.py").write_text(program)
    found = {module_of(command): command for command in commands("docs/remote.md")}
    options = shlex.split(found["tools.serve_env"])[3:]
    assert options[:2] == ["--env", "my_robot:make_env"] and options[4] == "--port"
    with servers(tmp_path) as serve:
        server = serve(options[1], *options[2:4])
        more = {"remote.url": server.url, "save_dir": tmp_path / "run", "num_train_step": 30}
        more |= {"log_per_step": 30, "episode_length": 8, "num_warm_up_episode": 1, "batch_size": 8}
        args = shlex.split(found["train_rl"])[2:] + [f"--{k}={v}" for k, v in more.items()]
        work = train_rl.run(run_config.parse_args(train_rl.MainConfig, args))
    assert work.replay.size() == 4 and metrics(tmp_path / "run")[-1]["step"] == 30
    assert (work.spec.task, work.spec.action_dim) == ("peg", 2)


def test_a_robot_that_is_gone_in_warm_up(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, run = serve("my_robots:make_arm"), tmp_path / "run"
    step_env, steps = train_rl.Workspace.step_env, []

    def losing(work: train_rl.Workspace, choose: Any) -> bool:
        steps.append(1)
        if len(steps) == 12:  # in the second of three episodes
            server.kill()
        return step_env(work, choose)

    options = {"num_warm_up_episode": 3, "remote.retry_for": 0}
    with monkeypatch.context() as patch:
        patch.setattr(train_rl.Workspace, "step_env", losing)
        with pytest.raises(EnvGone, match="step 0: state saved"):
            train_rl.run(arm(server, run, 16, **options))
    server.start()
    work = train_rl.run(arm(server, run, 16, **options, resume=1))
    assert [len(states) for states in episodes(work)] == [8] * 5
    assert_no_gap(work)


def test_a_signal_ends_the_waiting(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, run = serve("my_robots:make_arm"), tmp_path / "run"
    step_env = train_rl.Workspace.step_env

    def losing(work: train_rl.Workspace, choose: Any) -> bool:
        if work.global_step == 12:
            server.kill()
            threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGTERM)).start()
        return step_env(work, choose)

    started = time.monotonic()
    with monkeypatch.context() as patch:
        patch.setattr(train_rl.Workspace, "step_env", losing)
        with pytest.raises(EnvGone, match="SIGTERM while waiting.*step 12: state saved"):
            train_rl.run(arm(server, run, 16, **{"remote.retry_for": 600}))
    assert time.monotonic() - started < PATIENCE
    server.start()
    assert train_rl.run(arm(server, run, 16, resume=1)).global_step == 16


def test_successes_become_a_policy_that_plays_there(serve: Serve, tmp_path: Path) -> None:
    """From saved successes to BC, to IBRL with that policy, all in the same environment."""
    server = serve("my_robots:make_pendulum", "--deterministic", "1")
    pendulum = {
        "suite": "remote",
        "task_name": "Pendulum-v1",
        "remote.url": server.url,
        "gym.success_key": "truncated",
        "num_eval_episode": 0,
    }
    rl = tmp_path / "rl"
    train_rl.run(config(rl, 16, **pendulum, save_per_success=2))
    options = {
        "dataset.path": rl / "data1.h5",
        "dataset.use_state": 1,
        "dataset.eval_episode_len": 8,
        "env.remote_url": server.url,
        "env.gym_success_key": "truncated",
        "num_epoch": 1,
        "epoch_len": 5,
        "num_eval_episode": 1,
        "num_final_episode": 1,
        "device": "cpu",
        "save_dir": tmp_path / "bc",
    }
    args = [f"--{k}={v}" for k, v in options.items()]
    train_bc.run(run_config.parse_args(train_bc.MainConfig, args))
    assert metrics(tmp_path / "bc")[0]["score/success"] == 1.0
    ibrl = {"bc_policy": tmp_path / "bc" / "model0.pt", "q_agent.act_method": "ibrl"}
    work = train_rl.run(config(tmp_path / "ibrl", 16, **pendulum | ibrl))
    assert work.agent.num_bc_action == 1 and work.replay.num_success == 3
