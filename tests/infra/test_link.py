"""Connections: openpi's own client and server sides of the protocol, and what goes wrong."""

from __future__ import annotations

import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from openpi_client import msgpack_numpy as openpi
from openpi_client.websocket_client_policy import WebsocketClientPolicy
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect
from websockets.sync.server import serve

from common_utils.errors import UserError
from common_utils.link import (
    SERVER_OPTIONS,
    TOKEN_VARIABLE,
    Link,
    LinkLost,
    LinkRefused,
    check_url,
    gate,
)
from common_utils.wire import WireError


@contextmanager
def server(handler: Callable[[Any], None], token: str = "", port: int = 0) -> Iterator[int]:
    """``handler`` as a server in a thread; its port."""
    with serve(
        handler, "127.0.0.1", port, process_request=gate(token), **SERVER_OPTIONS
    ) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        try:
            yield running.socket.getsockname()[1]
        finally:
            running.shutdown()
            thread.join()


def doubling(connection: Any) -> None:
    """Answers as openpi's servers do, packed by openpi."""
    connection.send(openpi.packb({"name": "doubling"}))
    for data in connection:
        message = openpi.unpackb(data)
        if "x" not in message:
            connection.send("Traceback (most recent call last):\nKeyError: 'x'")
            connection.close(1011, "an error")
            return
        connection.send(openpi.packb({"actions": message["x"] * 2}))


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def test_ask_an_openpi_server() -> None:
    with server(doubling) as port:
        link = Link(f"ws://127.0.0.1:{port}")
        assert not link.is_open
        assert link.connect() == {"name": "doubling"} == link.greeting
        answer = link.ask({"x": np.arange(3, dtype=np.float32)})
        np.testing.assert_array_equal(answer["actions"], np.float32([0, 2, 4]))
        with pytest.raises(LinkRefused, match="the server answered: KeyError: 'x'"):
            link.ask({"y": 1})
        assert not link.is_open
        assert link.ask({"x": 4}) == {"actions": 8}  # connected again
        link.close()
        link.close()


def test_a_token() -> None:
    with server(doubling, "secret") as port:
        url = f"ws://127.0.0.1:{port}"
        assert Link(url, token="secret").ask({"x": 1}) == {"actions": 2}
        assert WebsocketClientPolicy("127.0.0.1", port, "secret").infer({"x": 1}) == {"actions": 2}
        for wrong in ("", "Secret", "secret2", "secre"):
            with pytest.raises(LinkRefused, match=rf"refuses .*401.*{TOKEN_VARIABLE}"):
                Link(url, token=wrong).connect()


def test_a_token_that_no_header_can_hold() -> None:
    for token in ("sécret", "two words", "line\nX-Header: 1"):
        with pytest.raises(UserError, match=f"^{TOKEN_VARIABLE}: expected a token of visible"):
            Link(f"ws://127.0.0.1:{free_port()}", token=token).connect()


def test_the_token_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    with server(doubling, "secret") as port:
        monkeypatch.setenv(TOKEN_VARIABLE, "secret")
        assert Link(f"ws://127.0.0.1:{port}").ask({"x": 1}) == {"actions": 2}


def test_health_needs_no_token_and_pages_may_not_connect() -> None:
    with server(doubling, "secret") as port:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz") as answer:
            assert (answer.status, answer.read()) == (200, b"OK\n")
        with pytest.raises(urllib.error.HTTPError, match="401"):
            urllib.request.urlopen(f"http://127.0.0.1:{port}/")
    with server(doubling) as port, pytest.raises(InvalidStatus, match="403"):
        connect(f"ws://127.0.0.1:{port}", origin="https://example.org")  # type: ignore[arg-type]


def test_a_lost_connection_is_made_again() -> None:
    def once(connection: Any) -> None:
        connection.send(openpi.packb({}))
        connection.send(connection.recv())

    with server(once) as port:
        link = Link(f"ws://127.0.0.1:{port}", field="bc_policy")
        assert link.ask(1) == 1
        with pytest.raises(LinkLost, match=rf"bc_policy: ws://127.0.0.1:{port}: the connection"):
            link.ask(2)
        assert link.ask(3) == 3
    link.close()
    with pytest.raises(LinkLost, match="no server answers there"):
        link.ask(4)


def test_a_late_answer_is_not_taken_for_the_next() -> None:
    released = threading.Event()

    def slow(connection: Any) -> None:
        connection.send(openpi.packb({}))
        for data in connection:
            if openpi.unpackb(data) == "slow":
                released.wait(10)
            connection.send(data)

    with server(slow) as port:
        link = Link(f"ws://127.0.0.1:{port}", timeout=0.3)
        with pytest.raises(LinkLost, match="no answer within 0.3 s"):
            link.ask("slow")
        released.set()
        assert link.ask("next") == "next"
        link.close()


def test_a_server_that_never_greets() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        with pytest.raises(LinkLost, match="no server answers there"):
            Link(f"ws://127.0.0.1:{port}", timeout=0.2).connect()
    with server(lambda connection: connection.recv()) as port:
        with pytest.raises(LinkLost, match="no answer within 0.2 s"):
            Link(f"ws://127.0.0.1:{port}", timeout=0.2).connect()
    with pytest.raises(LinkLost, match="no server answers there"):
        Link(f"ws://127.0.0.1:{free_port()}").connect()


def test_answers_that_are_no_messages_or_too_large() -> None:
    def hostile(connection: Any) -> None:
        connection.send(openpi.packb({}))
        for data in connection:
            connection.send(b"\xc1" if openpi.unpackb(data) == "garbage" else b"\0" * 5000)

    with server(hostile) as port:
        link = Link(f"ws://127.0.0.1:{port}", max_bytes=1000)
        with pytest.raises(WireError, match="1 bytes are not a msgpack message"):
            link.ask("garbage")
        with pytest.raises(LinkLost, match="lost .*1009"):
            link.ask("large")
        with pytest.raises(WireError, match="found a object"):
            link.ask(object())


@pytest.mark.parametrize(
    "url",
    ["", "127.0.0.1:8000", "http://x:8000", "ws://", "ws://:8000", "ws://x:port", "ws://x:0",
     "ws://x:99999", "ws://me:secret@x:8000", "ws://a b:80", "ws://[::1", "ws:/x:80"],
)  # fmt: skip
def test_what_is_no_url(url: str) -> None:
    with pytest.raises(UserError, match=r"^bc_policy: found '.*', expected ws://HOST:PORT"):
        check_url(url, "bc_policy")
    for good in ("ws://127.0.0.1:8000", "ws://[::1]:80", "wss://robot.example/pi05"):
        check_url(good, "bc_policy")
