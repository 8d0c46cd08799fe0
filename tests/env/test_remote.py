"""Suite remote: an environment in a process of its own, over a real connection."""

from __future__ import annotations

import ast
import json
import os
import pty
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from websockets.sync.client import connect
from websockets.sync.server import serve as serve_sync

from common_utils import wire
from common_utils.errors import UserError
from env.config import EnvConfig
from env.core import EnvError, EnvGone, EpisodeLost
from env.factory import make_env
from env.network import proxy
from tests.env.served import PATIENCE, REPO, Server, servers
from tools import serve_env
from tools.env_server import messages

Serve = Callable[..., Server]


@pytest.fixture(autouse=True)
def no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("IBRL_TOKEN", raising=False)


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    with servers(tmp_path) as start:
        yield start


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
    with pytest.raises(EpisodeLost, match="no episode of this connection"):
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


# -------------------------------------------------- others that speak, or do not, the protocol

GREETING: dict[str, Any] = {
    "protocol": "ibrl-env",
    "version": 1,
    "name": "Arm",
    "observations": {"joints": {"shape": [2], "dtype": "<f4"}},
    "action": {"low": np.float32([-1]), "high": np.float32([1])},
    "control_hz": 10.0,
    "episode_length": None,
    "deterministic": False,
    "renders": False,
}
OBSERVATION = {"joints": np.zeros(2, np.float32)}


@contextmanager
def speaking(*answers: Any) -> Iterator[EnvConfig]:
    """A server that sends these messages (bytes and text as they are), one per request."""

    def handle(connection: Any) -> None:
        for answer in answers:
            raw = isinstance(answer, (str, bytes))
            connection.send(answer if raw else wire.pack(answer))
            next(iter(connection), None)

    with serve_sync(handle, "127.0.0.1", 0) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        url = f"ws://127.0.0.1:{server.socket.getsockname()[1]}"
        yield EnvConfig(
            suite="remote", task="Arm", remote_url=url, use_state=1, gym_state_key="joints",
            remote_retry_for=0.0, remote_step_timeout=20.0,
        )  # fmt: skip
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"protocol": "openpi"}, "protocol: found 'openpi', expected 'ibrl-env'"),
        ({"version": 2}, r"version: found 2, expected 1 \(this program's\)"),
        ({"observations": {}}, "observations: found {}, expected a map of 1 to 64 names"),
        ({"observations": {"joints": {"shape": [2], "dtype": "O"}}}, "observations.joints: found"),
        ({"observations": {"joints": {"shape": [-2], "dtype": "<f4"}}}, "observations.joints: fou"),
        ({"observations": {"joints": {"shape": [10**7], "dtype": "<f8"}}}, "80000000 bytes in all"),
        ({"action": {"low": np.float32([1]), "high": np.float32([1])}}, "action: found .* low < h"),
        ({"action": {"low": np.float32([-np.inf]), "high": np.float32([1])}}, "action: found"),
        ({"control_hz": 0}, "control_hz: found 0, expected a positive number"),
        ({"episode_length": True}, "episode_length: found True"),
        ({"deterministic": 1}, "deterministic: found 1, expected true or false"),
    ],
)
def test_a_wrong_greeting_is_refused(change: dict[str, Any], message: str) -> None:
    with speaking({**GREETING, **change}) as cfg:
        with pytest.raises(EnvGone, match=message) as caught:
            make_env(cfg)
    assert str(caught.value).startswith("remote.url: ws://127.0.0.1:")


@pytest.mark.parametrize("greeting", [b"\xc1garbage", "hello", [1, 2], os.urandom(2000)])
def test_garbage_is_refused(greeting: Any) -> None:
    with speaking(greeting) as cfg:
        with pytest.raises(UserError, match="remote.url: ws://127.0.0.1:"):
            make_env(cfg)


STEP = {"type": "step", "observation": OBSERVATION, "terminated": False, "truncated": False}


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (b"\xc1", "not a msgpack message"),
        ("Traceback: KeyError", "the server answered: Traceback: KeyError"),
        (7, "answer: found 7, expected a map"),
        ({"type": "reset"}, "type: found 'reset', expected 'step'"),
        ({**STEP, "reward": "1"}, "reward: found '1', expected a number"),
        ({**STEP, "reward": 1.0, "truncated": None}, "terminated, truncated: found"),
        ({**STEP, "reward": 1.0, "observation": {}}, r"observation: found \[\], expected joints"),
        (
            {**STEP, "reward": 1.0, "observation": {"joints": np.zeros(3, np.float32)}},
            r"observation.joints: found 'float32\[3\]', expected float32\[2\], as in the greeting",
        ),
        ({"type": "error", "code": "request", "message": "no\x1b[2Jsuch thing"}, "no.*such thing"),
    ],
)
def test_a_wrong_answer_ends_the_run(answer: Any, message: str) -> None:
    begun = {"type": "reset", "observation": OBSERVATION}
    with speaking(GREETING, {"type": "hello"}, begun, answer) as cfg:
        env = make_env(cfg)
        env.reset(seed=1)
        with pytest.raises(EnvGone, match=message):
            env.step(np.zeros(1))
        env.close()


def test_silence_is_a_lost_connection() -> None:
    with speaking(GREETING, {"type": "hello"}) as cfg:
        cfg.remote_reset_timeout = 0.7
        env = make_env(cfg)
        with pytest.raises(EnvGone, match=r"no answer within 0.7 s|connection was lost"):
            env.reset(seed=1)
        env.close()


def test_requests_that_make_no_sense_do_not_stop_a_server(serve: Serve) -> None:
    server = serve("my_robots:make_arm")

    def ask(socket: Any, message: Any) -> Any:
        raw = isinstance(message, (bytes, str))
        socket.send(message if raw else wire.pack(message))
        return messages.unpack(socket.recv(timeout=PATIENCE))

    hello, reset = {"type": "hello", "client": "me"}, {"type": "reset", "seed": 1}
    low = np.float32([-0.5, -0.5])
    bad = [
        (reset, "found 'reset', expected a hello first"),
        ({"type": "hello", "client": 3}, "client: found 3"),
        (b"\xc1", "no msgpack message"),
        ("text", "no msgpack message"),
        (b"\x01", "found a int, expected a map"),
    ]
    worse = [
        ({"type": "reset", "seed": -1}, "seed: found -1"),
        ({"type": "fly"}, "type: found 'fly', expected one of reset, step, render"),
        ({"type": "step", "action": low}, "no episode of this connection"),
    ]
    worst = [
        ({"type": "step", "action": [0.0, 0.0]}, r"action: found '\[0.0, 0.0\]'|found '?\[0.0"),
        ({"type": "step", "action": np.zeros(3, np.float32)}, r"found \[3\], expected shape \[2\]"),
        ({"type": "step", "action": np.zeros(2)}, "found float64, expected float32"),
        ({"type": "step", "action": low * np.float32(1.01)}, "outside of its bounds"),
        ({"type": "step", "action": low * np.float32(np.nan)}, "outside of its bounds"),
    ]
    with connect(server.url) as socket:
        assert messages.unpack(socket.recv())["name"] == "Arm"
        for stage, entry in ((bad, hello), (worse, reset), (worst, None)):
            for request, message in stage:
                answer = ask(socket, request)
                assert answer["type"] == "error" and re.search(message, answer["message"]), answer
            if entry is not None:
                assert ask(socket, entry)["type"] == entry["type"]
        assert ask(socket, {"type": "step", "action": low})["reward"] == 0.25
        assert ask(socket, {"type": "step", "action": low})["info"] == {"at": 2.0, "far": True}
    with connect(server.url) as socket:  # too large: this connection ends, the server does not
        socket.send(bytes(2**21))
        with pytest.raises(Exception, match="1009"):
            while True:
                socket.recv(timeout=PATIENCE)
    env = remote(server)
    env.reset(seed=1)
    env.close()
    assert server.process.poll() is None


# ---------------------------------------------------------------------- the program


def test_messages_have_the_same_bytes_everywhere() -> None:
    message = {**GREETING, "picture": np.arange(12, dtype=np.uint8).reshape(2, 2, 3), "no": [None]}
    assert messages.pack(message) == wire.pack(message)
    back = messages.unpack(wire.pack(message))
    assert back.keys() == message.keys() and np.array_equal(back["picture"], message["picture"])


def test_the_robots_folder_is_old_python_and_needs_nothing_else() -> None:
    known = {"__future__", "msgpack", "numpy", "websockets"} | set(sys.stdlib_module_names)
    files = sorted((REPO / "tools" / "env_server").glob("*.py"))
    assert len(files) >= 6
    for path in files:
        tree = ast.parse(path.read_text(), feature_version=(3, 8))
        for node in tree.body:  # not those inside functions
            if isinstance(node, ast.Import):
                found = {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                found = {str(node.module).split(".")[0]}
            else:
                continue
            assert found <= known, path


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--env", "my_robots"], "--env: found 'my_robots', expected MODULE:FUNCTION"),
        (["--env", "no_such:make"], "No module named 'no_such'"),
        (["--env", "tests.env.my_robots:make_nothing"], "returned a int, expected a gymnasium.Env"),
        (["--env", "tests.env.my_robots:make_words"], "observation 'words': found Text"),
        (["--env", "tests.env.my_robots:make_arm", "--host", "0.0.0.0"], "in the environment var"),
        (["--env", "tests.env.my_robots:make_arm", "--port", "99999"], "--port: found '99999'"),
        (["--env", "tests.env.my_robots:make_arm", "--control_hz", "0"], "--control_hz: found '0'"),
    ],
)
def test_mistakes_are_one_line(
    options: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["serve_env", *options])
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    with pytest.raises(UserError) as caught:
        serve_env.main()
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_an_address_is_needed_and_a_taken_port_is_named(serve: Serve) -> None:
    with pytest.raises(EnvError, match="remote.url .*: empty, expected the address"):
        make_env(EnvConfig(suite="remote", task="Arm"))
    with pytest.raises(UserError, match="remote.url: found 'http://x', expected ws://HOST:PORT"):
        make_env(EnvConfig(suite="remote", task="Arm", remote_url="http://x"))
    server = serve("my_robots:make_arm")
    with pytest.raises(AssertionError, match=r"error: --port: cannot listen at 127.0.0.1:\d+"):
        server.start()
