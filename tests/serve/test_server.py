"""The server, driven by openpi's own client: the actions of the policy, and nobody stops it."""

from __future__ import annotations

import os
import random
import re
import shlex
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from openpi_client import action_chunk_broker, msgpack_numpy
from openpi_client.websocket_client_policy import WebsocketClientPolicy
from websockets.exceptions import ConnectionClosedError, InvalidStatus
from websockets.sync.client import connect

from common_utils.errors import run_program
from env.config import EnvConfig
from env.factory import make_env
from evaluate.rollout import PolicyRunner, run_eval
from serve.session import MAX_BATCH
from tests.runs import env as program_env
from tests.serve.checkpoints import STATE, bc_checkpoint, port_of, serving
from tools import serve
from train_bc import load_model

HISTORY = 3


@pytest.fixture(scope="module")
def weight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy of three steps of states."""
    return bc_checkpoint(tmp_path_factory.mktemp("bc"), HISTORY)


ROOT = Path(__file__).resolve().parents[2]


def test_the_program_of_the_documentation(weight: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = (ROOT / "docs/deploy.md").read_text()
    code = next(b for b in re.findall(r"```python\n(.*?)```", page, re.S) if "openpi_client" in b)
    with serving(weight, "--map", "observation/state=state") as server:
        robot = (
            "class Robot:\n    def state(self): return [0.0] * 8\n    def move(self, a): print(a)\n"
        )
        exec(f"{robot}robot = Robot()\n" + code.replace("8000", str(port_of(server))), {})
    assert len(capsys.readouterr().out.splitlines()) == 100


def test_the_commands_of_the_documentation() -> None:
    page = (ROOT / "docs/deploy.md").read_text()
    commands = re.findall(r"^ibrl serve (.*)$", page, re.M)
    assert len(commands) == 3
    for options in commands:
        serve._parser().parse_args(shlex.split(options, comments=True))


@pytest.fixture(scope="module")
def drawing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy that draws random numbers when it acts."""
    more = {"mdn.greedy_eval": 0}
    return bc_checkpoint(tmp_path_factory.mktemp("mdn"), kind="mdn", **more)


def client(server: Any, token: str | None = None) -> WebsocketClientPolicy:
    return WebsocketClientPolicy("127.0.0.1", port_of(server), token)


def test_openpis_client_plays_the_episodes_that_we_play(weight: Path) -> None:
    """It sends one step at a time; the histories are the server's."""
    policy, env, params = load_model(weight, "cpu")
    single = make_env(EnvConfig(**(params | {"state_stack": 1})))
    runner = PolicyRunner(policy)
    with serving(weight, "--map", "observation/state=state") as server:
        remote = client(server)
        for seed in (3, 4):
            obs, _ = env.reset(seed=seed)
            seen, _ = single.reset(seed=seed)
            done, begin = False, True
            while not done:
                mine = runner.act(obs)
                answer = remote.infer(
                    {"observation/state": seen["state"], "prompt": "reach", "reset": begin}
                )
                assert answer["actions"].dtype == np.float32
                np.testing.assert_array_equal(answer["actions"], mine[None])
                assert answer["server_timing"]["infer_ms"] > 0
                obs, _, terminated, truncated, _ = env.step(mine)
                seen = single.step(answer["actions"][0])[0]
                done, begin = terminated or truncated, False
        assert run_eval(env, policy, 1, 3).lengths[0] > HISTORY
        # the same by openpi's queue of chunks of one step
        broker = action_chunk_broker.ActionChunkBroker(client(server), action_horizon=1)
        state = single.reset(seed=3)[0]["state"]
        np.testing.assert_array_equal(
            broker.infer({"observation/state": state})["actions"],
            runner.act(env.reset(seed=3)[0]),
        )


def test_the_greeting_says_what_is_served(weight: Path) -> None:
    with serving(weight, "--map", "arm/joints=state") as server:
        said = client(server).get_server_metadata()
    state = {"shape": [HISTORY * STATE], "dtype": "float32", "stack": HISTORY}
    assert said["observations"] == {"arm/joints": state}
    assert (said["kind"], said["suite"], said["task"]) == ("bc", "particle", "PARTICLE_2d")
    assert (said["action_dim"], said["action_horizon"]) == (2, 1)
    assert len(said["weights"]) == 64 and said["max_batch"] == MAX_BATCH


def test_batches(weight: Path) -> None:
    policy, _, _ = load_model(weight, "cpu")
    states = np.random.default_rng(0).random((5, HISTORY * STATE), np.float32)
    want = policy.act({"state": torch.from_numpy(states)})
    with serving(weight) as server:
        actions = client(server).infer({"state": states})["actions"]
    np.testing.assert_array_equal(actions, want[:, None])


def test_clients_do_not_change_each_other(drawing: Path) -> None:
    """Each has its own random numbers, by the order in which they connected."""
    states = np.random.default_rng(1).random((6, STATE), np.float32)

    def apart() -> list[np.ndarray]:
        with serving(drawing, "--seed", "5") as server:
            clients = [client(server) for _ in range(2)]
            return [np.stack([c.infer({"state": s})["actions"] for s in states]) for c in clients]

    def mixed() -> list[np.ndarray]:
        with serving(drawing, "--seed", "5") as server:
            clients = [client(server) for _ in range(2)]
            out: list[list[np.ndarray]] = [[], []]
            for s in states:
                for c, own in zip(reversed(clients), reversed(out), strict=True):
                    own.append(c.infer({"state": s})["actions"])
            return [np.stack(own) for own in out]

    first, second = apart()
    for a, b in zip((first, second), mixed(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert not np.array_equal(first, second)


def test_many_clients_at_once(weight: Path) -> None:
    policy, _, _ = load_model(weight, "cpu")
    states = np.random.default_rng(2).random((20, HISTORY * STATE), np.float32)
    want = [policy.act({"state": torch.from_numpy(s)}).numpy() for s in states]
    wrong: list[int] = []

    def ask(server: Any) -> None:
        own = client(server)
        got = [own.infer({"state": s})["actions"][0] for s in states]
        wrong.extend(i for i, (a, b) in enumerate(zip(got, want, strict=True)) if (a != b).any())

    with serving(weight, "--report_every", "50") as server:
        threads = [threading.Thread(target=ask, args=(server,)) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        said: list[str] = server.said  # type: ignore[attr-defined]
    assert not wrong
    assert [s.partition(":")[0] for s in said] == ["50 requests"] * 3
    assert server.summary().startswith("8 connections, 160 requests: p50 ")


def test_a_wrong_request_ends_its_connection_alone(weight: Path) -> None:
    good = {"state": np.zeros(STATE, np.float32)}
    with serving(weight) as server:
        other, mine = client(server), client(server)
        other.infer(good)
        with pytest.raises(
            RuntimeError, match=r"state: found float32\[7\], expected float32 \[8\]"
        ):
            mine.infer({"state": np.zeros(7, np.float32)})
        with pytest.raises(ConnectionClosedError) as closed:
            mine.infer(good)
        assert closed.value.rcvd is not None and closed.value.rcvd.code == 1011
        assert other.infer(good)["actions"].shape == (1, 2)
        said: list[str] = server.said  # type: ignore[attr-defined]
        assert [s.partition(": found")[0] for s in said] == ["client 2: state"]


def test_a_policy_that_fails_ends_one_connection(
    weight: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = {"state": np.zeros(STATE, np.float32)}
    with serving(weight) as server:
        act, mine, other = server.player.act_chunk, client(server), client(server)
        server.player.act_chunk = lambda *a, **k: 1 / 0  # type: ignore[method-assign]
        with pytest.raises(RuntimeError, match="the server failed: ZeroDivisionError"):
            mine.infer(good)
        server.player.act_chunk = lambda *a, **k: torch.full((1, 2), torch.nan)  # type: ignore
        with pytest.raises(RuntimeError, match="the policy's action is NaN or infinite"):
            client(server).infer(good)
        server.player.act_chunk = act  # type: ignore[method-assign]
        assert other.infer(good)["actions"].shape == (1, 2)
    assert "ZeroDivisionError" in capsys.readouterr().err


def test_token_health_and_limits(weight: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IBRL_TOKEN", "secret")
    good = {"state": np.zeros(STATE, np.float32)}
    with serving(weight, "--max_clients", "1", "--max_mb", "1") as server:
        health = f"http://127.0.0.1:{port_of(server)}/healthz"
        with pytest.raises(InvalidStatus, match="401"):
            client(server, "other")
        first = client(server, "secret")
        with pytest.raises(InvalidStatus, match="503"):
            client(server, "secret")
        assert urllib.request.urlopen(health).status == 200
        with pytest.raises(ConnectionClosedError, match="1009"):
            first.infer(good | {"picture": np.zeros(2**20, np.uint8)})
        deadline = time.monotonic() + 10
        while True:  # its place is free as soon as the server knows that it has left
            try:
                assert client(server, "secret").infer(good)["actions"].shape == (1, 2)
                break
            except InvalidStatus:
                assert time.monotonic() < deadline
                time.sleep(0.05)


def raw(port: int, data: bytes) -> socket.socket:
    """A connection that sent ``data``."""
    sock = socket.create_connection(("127.0.0.1", port))
    sock.sendall(data)
    return sock


UPGRADE = (
    b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


def test_garbage_of_all_kinds_stops_nobody(weight: Path, capfd: pytest.CaptureFixture[str]) -> None:
    rng, good = random.Random(0), {"state": np.zeros(STATE, np.float32)}
    whole = msgpack_numpy.packb(good)
    with serving(weight) as server:
        port, steady = port_of(server), client(server)
        held = [
            raw(port, b""),  # says nothing
            raw(port, UPGRADE[:40]),  # half a handshake
            raw(port, UPGRADE),  # never reads, never answers pings
            raw(port, UPGRADE + b"\x82\xff" + struct.pack(">Q", 2**62)),  # promises an exabyte
            raw(port, UPGRADE + b"\x02\x85abcdhello"),  # a message that never ends
        ]
        for _ in range(30):
            held.append(raw(port, rng.choice([b"", UPGRADE]) + rng.randbytes(rng.randint(1, 300))))
        for _ in range(60):
            data = bytearray(whole)
            for _ in range(rng.randint(1, 6)):
                data[rng.randrange(len(data))] = rng.randrange(256)
            with connect(f"ws://127.0.0.1:{port}") as other:
                other.recv()
                other.send(rng.choice([bytes(data), whole[: rng.randrange(len(whole))], "text"]))
                answer = other.recv()
                if isinstance(answer, str):
                    assert answer.startswith(("message: ", "state: ", "request: ", "reset: "))
                    assert "\n" not in answer and len(answer) < 700
        assert steady.infer(good)["actions"].shape == (1, 2)
        for sock in held:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            sock.close()  # without a goodbye
        assert client(server).infer(good)["actions"].shape == (1, 2)
    assert "Traceback" not in "".join(capfd.readouterr())


def test_the_program_from_start_to_end(weight: Path) -> None:
    args = ["-m", "tools.serve", "--weight", str(weight), "--port", "0", "--device", "cpu"]
    process = subprocess.Popen(
        [sys.executable, *args], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=program_env(),
    )  # fmt: skip
    try:
        assert process.stdout is not None
        first = process.stdout.readline()
        assert f"{weight} is served at ws://127.0.0.1:" in first
        assert first.endswith(f"state float32[{HISTORY * STATE}] -> actions [1, A]\n")
        port = int(first.partition("127.0.0.1:")[2].partition(":")[0])
        with socket.create_connection(("127.0.0.1", port)):
            mine = WebsocketClientPolicy("127.0.0.1", port)
            mine.infer({"state": np.zeros(STATE)})
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 0 and err == ""
    assert out.startswith("ended: 1 connections, 1 requests: p50 ")


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--map", "state"], "--map: found 'state', expected THEIRS=OURS with one of state"),
        (["--map", "a=prop"], "--map: found 'a=prop', expected THEIRS=OURS with one of state"),
        (["--map", "reset=state"], "--map: found 'reset', which begins an episode"),
        (["--port", "70000"], "--port: expected"),
        (["--token", "two words"], "--token: expected a token of visible ASCII"),
        (["--host", "192.0.2.1"], "--host, --port: 192.0.2.1:0: "),
        (["--weight", "gone.pt"], "--weight: no file 'gone.pt'"),
    ],
)
def test_what_cannot_be_served(
    weight: Path, args: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    usual = ["--weight", str(weight), "--port", "0", "--device", "cpu"]
    try:
        status = run_program(serve.main, [*usual, *args])
    except SystemExit as ended:
        status = ended.code  # type: ignore[assignment]
    err = capsys.readouterr().err
    assert status == 2 and err.startswith(f"error: {said}") and err.count("\n") == 1, err


def test_a_port_in_use(weight: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with serving(weight) as server:
        port = str(port_of(server))
        usual = ["--weight", str(weight), "--port", port, "--device", "cpu"]
        assert run_program(serve.main, usual) == 2
    assert f"--host, --port: 127.0.0.1:{port}: " in capsys.readouterr().err
    assert os.environ.get("IBRL_TOKEN") is None
