"""Suite remote: what is refused, on both sides, and the program that serves an environment."""

from __future__ import annotations

import ast
import os
import re
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from websockets.sync.client import connect
from websockets.sync.server import serve as serve_sync

from common_utils import wire
from common_utils.errors import UserError
from env.config import EnvConfig
from env.core import EnvError, EnvGone
from env.factory import make_env
from tests.env.served import PATIENCE, REPO, Serve
from tools import serve_env
from tools.env_server import messages

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
        ({"type": "reset", "seed": 1, "steps": 0}, "steps: found 0"),
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
    env = make_env(server.config("Arm", gym_state_key="joints"))
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
        serve("my_robots:make_arm", "--port", str(server.port))
