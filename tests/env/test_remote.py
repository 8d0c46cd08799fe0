"""Suite remote: an environment in a process of its own, over a real connection."""

from __future__ import annotations

import json
import os
import pty
import signal
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from env.config import EnvConfig
from env.core import EnvError, EnvGone, EpisodeLost
from env.factory import make_env
from env.network import proxy
from tests.env.served import REPO, Serve, Server


def actions(num: int, dim: int = 1) -> np.ndarray:
    return np.random.default_rng(0).uniform(-1, 1, (num, dim)).astype(np.float32)


def same(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) for k in a)


def remote(server: Server, task: str = "Arm", **more: Any) -> Any:
    keys = {} if task != "Arm" else {"gym_state_key": "joints"}
    return make_env(server.config(task, **keys, **more))


# ------------------------------------------------------------------------- the same bits


def test_a_served_environment_is_the_one_in_this_process(serve: Serve) -> None:
    server = serve("my_robots:make_pendulum")
    options = {"use_state": 1, "state_stack": 2, "action_repeat": 2, "env_reward_scale": 3.0}
    here = make_env(EnvConfig(suite="gymnasium", task="Pendulum-v1", episode_length=12, **options))
    there = make_env(server.config("Pendulum-v1", **{**options, "episode_length": 12}))
    assert there.spec.observations == here.spec.observations
    assert (there.spec.suite, there.spec.horizon, there.control_hz) == ("remote", 12, 30)
    assert not there.replayable and there.only_one and here.replayable
    for seed in (3, 9):
        assert same(here.reset(seed=seed)[0], there.reset(seed=seed)[0])
        for action in actions(12):
            mine, theirs = here.step(action), there.step(action)
            assert same(mine[0], theirs[0])
            assert mine[1:] == theirs[1:]
        assert theirs[3], "the time limit"
        with pytest.raises(EnvError, match="call reset first"):
            there.step(action)
    assert there.network_seconds > 0
    there.close()
    server.wait_for("gone: ")
    server.kill(signal.SIGINT)
    assert server.process.returncode == 0 and server.lines[-1].endswith("stopped\n")


def test_cameras_and_pictures(serve: Serve) -> None:
    server = serve("my_robots:make_arm")
    env = remote(server, cameras=["wrist", "render"], rl_image_size=8, image_size=8, obs_stack=2)
    obs, _ = env.reset(seed=1)
    assert obs["wrist"].shape == obs["render"].shape == (6, 8, 8)
    for _ in range(5):
        obs = env.step(np.zeros(2, np.float32))[0]
    assert obs["wrist"][0].max() == obs["render"][0].min() == 5 and obs["wrist"][3].max() == 4
    assert env.render("wrist").max() == 5 and env.render("render").shape == (8, 8, 3)
    env.close()


def test_an_environment_of_this_project_can_be_served(serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "ours.py").write_text(
        f"import sys\nsys.path.insert(0, {str(REPO)!r})\n"
        "from env.factory import make_env\n"
        "def make():\n"
        "    return make_env(dict(suite='particle', task='PARTICLE_2d', use_state=1))\n"
    )
    server = serve("ours:make", "--name", "PARTICLE_2d", "--deterministic", "1")
    there = make_env(server.config("PARTICLE_2d", episode_length=50, gym_success_key="success"))
    here = make_env(EnvConfig(suite="particle", task="PARTICLE_2d", use_state=1, episode_length=50))
    assert there.replayable
    assert same(here.reset(seed=4)[0], there.reset(seed=4)[0])
    for action in actions(50, 2):
        mine, theirs = here.step(action), there.step(action)
        np.testing.assert_allclose(mine[0]["state"], theirs[0]["state"], rtol=0, atol=1e-6)
    assert mine[1:4] == theirs[1:4] and theirs[4]["success"] is False
    there.close()


# --------------------------------------------------------------------------- the button


def test_a_person_ends_the_episode(serve: Serve) -> None:
    server = serve("my_robots:make_arm")
    env = remote(server, env_reward_scale=2.0, gym_success_key="nobody_reports_this")
    assert server.http("/success") == (409, "no episode is running\n")
    assert "Success" in server.http("/", "GET")[1]
    for verdict, reward in (("success", 2.0), ("failure", 0.0)):
        env.reset(seed=1)
        assert env.step(np.zeros(2))[1:4] == (0.5, False, False)
        assert server.http(f"/{verdict}")[0] == 200
        shown = json.loads(server.http("/status", "GET")[1])
        assert (shown["running"], shown["step"], shown["verdict"]) == (True, 1, verdict)
        _, *ends, info = env.step(np.zeros(2))
        assert ends == [reward, True, False] and info == {"success": verdict == "success"}
        assert server.http("/success")[0] == 409
        assert server.wait_for("steps, (.*) by hand") == verdict
    assert json.loads(server.http("/status", "GET")[1])["episode"] == 2
    env.close()
    env = remote(
        server, episode_length=3, action_repeat=2, image_size=8
    )  # the trainer's time limit: too late
    env.reset(seed=1)
    assert [env.step(np.zeros(2))[3] for _ in range(3)] == [False, False, True]
    assert server.http("/success") == (409, "no episode is running\n")
    assert server.wait_for("episode 3: 6 steps, the (.*),") == "trainer's time limit"
    assert env.render("render").max() == 6
    for headers, status in (({"Origin": "http://elsewhere"}, 403), ({"Origin": server.page}, 409)):
        assert server.http("/success", **headers)[0] == status
    assert server.http("/reset")[0] == 404
    env.close()


def test_the_keyboard_is_a_button_too(serve: Serve) -> None:
    server = serve("my_robots:make_arm")
    server.kill()
    ours, theirs = pty.openpty()
    server.start(stdin=theirs)
    env = remote(server)
    env.reset(seed=1)
    os.write(ours, b"x\ns\n")
    server.wait_for(r"type s \(success\)")
    server.wait_for("success: episode 1 ends with this step")
    assert env.step(np.zeros(2))[1:3] == (1.0, True)
    env.close()
    os.close(theirs)
    os.close(ours)


# -------------------------------------------------------------------- who may come in


def test_a_token(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    server = serve("my_robots:make_arm", token="s3cret")
    for given in ("", "wrong"):
        monkeypatch.setenv("IBRL_TOKEN", given)
        with pytest.raises(EnvGone, match=r"remote.url: ws://.*401.*its token in IBRL_TOKEN"):
            remote(server)
    monkeypatch.setenv("IBRL_TOKEN", "s3cret")
    env = remote(server)
    env.reset(seed=1)
    assert [server.http(path)[0] for path in ("/success", "/failure")] == [401, 401]
    assert server.http("/status", "GET")[0] == 401
    assert server.http("/success", Authorization="Api-Key s3cret")[0] == 200
    env.close()


def test_one_client_at_a_time(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    server = serve("my_robots:make_arm")
    env = remote(server)
    env.reset(seed=1)
    with monkeypatch.context() as patch:
        patch.setattr(proxy, "CLIENT", "another trainer")
        with pytest.raises(EnvGone, match=r"in use by .*process \d+.*tried for 1 s"):
            remote(server, remote_retry_for=1.0)
    env.step(np.zeros(2))
    second = remote(server)  # of this process, such as that of an evaluation
    second.reset(seed=2)
    with pytest.raises(EpisodeLost, match="another environment of the same program"):
        env.step(np.zeros(2))
    second.close()
    assert env.reset(seed=1)[0]["state"][0] == 0
    env.close()


def test_a_wrong_name(serve: Serve) -> None:
    server = serve("my_robots:make_arm", "--name", "peg")
    with pytest.raises(EnvGone, match="task: found 'peg', expected 'Arm'"):
        remote(server)


# ----------------------------------------------------------------- lost connections


def said(env: Any) -> list[str]:
    lines: list[str] = []
    env.say = lines.append
    return lines


def test_a_deterministic_episode_goes_on_where_it_was(serve: Serve) -> None:
    server = serve("my_robots:make_pendulum", "--deterministic", "1")
    here = make_env(EnvConfig(suite="gymnasium", task="Pendulum-v1", use_state=1))
    there = make_env(server.config("Pendulum-v1"))
    lines = said(there)
    here.reset(seed=3), there.reset(seed=3)
    moves = actions(8)
    for action in moves[:5]:
        here.step(action), there.step(action)
    server.kill()
    threading.Timer(0.2, server.start).start()
    for action in moves[5:]:
        mine, theirs = here.step(action), there.step(action)
        assert same(mine[0], theirs[0]) and mine[1:] == theirs[1:]
    assert "connection was lost" in lines[0] and "next try in 1 s" in lines[0]
    assert "answers" in lines[-1]
    there.close()


def test_an_episode_of_a_robot_is_over(serve: Serve) -> None:
    server = serve("my_robots:make_arm")
    env = remote(server)
    lines = said(env)
    env.reset(seed=3)
    env.step(np.zeros(2))
    server.kill()
    server.start()
    with pytest.raises(EpisodeLost, match="connection was lost.*ended after 1 steps"):
        env.step(np.zeros(2))
    with pytest.raises(EnvError, match="call reset first"):
        env.step(np.zeros(2))
    assert len(lines) == 2
    assert env.reset(seed=4)[0]["state"].tolist() == [0, 0, 0]
    server.kill()
    threading.Timer(0.2, server.start).start()
    env.reset(seed=5)  # waits
    env.close()


def test_waiting_ends(serve: Serve) -> None:
    server = serve("my_robots:make_arm")
    env = remote(server, remote_retry_for=1.5)
    lines = said(env)
    env.reset(seed=3)
    server.kill()
    with pytest.raises(EnvGone, match=r"no server answers.*tried for 1.5 s \(remote.retry_for\)"):
        env.step(np.zeros(2))
    assert [line.count("next try in") for line in lines] == [1, 1]

    class Stop(BaseException):
        pass

    def stop() -> None:
        raise Stop

    env.on_wait = stop
    with pytest.raises(Stop):
        env.reset(seed=3)


def test_a_fault_of_the_environment_ends_the_episode(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("ARM_FAULT", str(tmp_path / "fault"))
    server = serve("my_robots:make_arm")
    env = remote(server)
    env.reset(seed=1)
    env.step(np.zeros(2))
    (tmp_path / "fault").touch()
    with pytest.raises(EpisodeLost, match="failed: RuntimeError: joint 3 is at its limit"):
        env.step(np.zeros(2))
    env.reset(seed=1)
    assert env.step(np.zeros(2))[0]["state"][0] == 1
    env.close()
