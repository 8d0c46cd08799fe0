"""Websocket connections to trainers, in a thread of their own."""

from __future__ import annotations

import asyncio
import hmac
import queue
import threading
from collections.abc import Sequence
from typing import Any

from websockets.asyncio.server import serve
from websockets.exceptions import ConnectionClosed

from .messages import Refused, ServeError, pack, say, unpack

MAX_REQUEST = 2**20  # bytes; requests hold one action
PING_EVERY, PING_TIMEOUT = 5, 15  # seconds; a trainer that was switched off is noticed


def has_token(given: Sequence[str], token: str) -> bool:
    """Whether the one Authorization header that was given is right ("": none is asked for)."""
    if not token:
        return True
    wanted = f"Api-Key {token}".encode()
    return len(given) == 1 and hmac.compare_digest(given[0].encode("utf-8", "replace"), wanted)


class Network:
    """Puts requests into ``jobs``: (request, connection, function that takes the answer).

    All connections of a client (a trainer's process) share the environment; another client learns
    who has it. When a connection ends, (None, connection, None) is put there.
    """

    def __init__(self, greeting: dict[str, Any], token: str) -> None:
        self.greeting, self.token = greeting, token
        self.jobs: queue.Queue[Any] = queue.Queue()
        self.client = ""
        self.connections: set[Any] = set()

    def start(self, host: str, port: int) -> int:
        """Listen; returns the port. Raises ServeError if that cannot be."""
        ready: queue.Queue[Any] = queue.Queue()
        listen = threading.Thread(target=asyncio.run, args=(self._listen(host, port, ready),))
        listen.daemon = True
        listen.start()
        found = ready.get()
        if isinstance(found, Exception):
            raise ServeError(f"--port: cannot listen at {host}:{port} ({found})")
        return int(found)

    async def _listen(self, host: str, port: int, ready: queue.Queue[Any]) -> None:
        try:
            server = await serve(
                self._handle, host, port, process_request=self._admit, max_size=MAX_REQUEST,
                origins=[None],  # a page in somebody's browser may not move the robot
                ping_interval=PING_EVERY, ping_timeout=PING_TIMEOUT, compression=None,
            )  # fmt: skip
        except OSError as error:
            ready.put(error)
            return
        ready.put(next(iter(server.sockets)).getsockname()[1])
        await asyncio.Event().wait()

    def _admit(self, connection: Any, request: Any) -> Any:
        if not has_token(request.headers.get_all("Authorization"), self.token):
            return connection.respond(401, "expected the header 'Authorization: Api-Key TOKEN'\n")
        return None

    async def _handle(self, connection: Any) -> None:
        try:
            await connection.send(pack(self.greeting))
            async for data in connection:
                await connection.send(pack(await self._answer(data, connection)))
        except ConnectionClosed:
            pass
        finally:
            self._leave(connection)

    async def _answer(self, data: Any, connection: Any) -> dict[str, Any]:
        try:
            request = unpack(data)
            if request.get("type") == "hello":
                return self._enter(request, connection)
            if connection not in self.connections:
                raise Refused("request", f"found {request.get('type')!r}, expected a hello first")
        except Refused as error:
            return error.answer()
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[dict[str, Any]] = loop.create_future()

        def deliver(found: dict[str, Any]) -> None:
            if not answer.done():  # the connection may have ended
                answer.set_result(found)

        def reply(found: dict[str, Any]) -> None:  # called in another thread
            loop.call_soon_threadsafe(deliver, found)

        self.jobs.put((request, connection, reply))
        return await answer

    def _enter(self, request: dict[Any, Any], connection: Any) -> dict[str, Any]:
        client = request.get("client")
        if not isinstance(client, str) or not 0 < len(client) <= 300 or not client.isprintable():
            raise Refused("request", f"client: found {client!r:.80}, expected a name")
        if self.client not in ("", client):
            raise Refused("busy", f"the environment is in use by {self.client}")
        if not self.client:
            say(f"connected: {client}")
        self.client = client
        self.connections.add(connection)
        return {"type": "hello"}

    def _leave(self, connection: Any) -> None:
        if connection not in self.connections:
            return
        self.connections.discard(connection)
        self.jobs.put((None, connection, None))
        if not self.connections:
            say(f"gone: {self.client}")
            self.client = ""
