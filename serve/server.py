"""A policy server with openpi's protocol: websockets, msgpack, actions ``[T, A]`` per request.

Connections are served by one event loop, the policy runs in one thread, one request after another:
a client that is slow, silent or sends garbage costs its own connection and nobody else's.
What a client gets does not depend on the others: its history and its generator are its own.
"""

from __future__ import annotations

import asyncio
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import numpy as np
import torch

from common_utils.errors import UserError, print_error, printable, shortened
from common_utils.link import HEALTH, SERVER_OPTIONS, gate, websockets_module
from common_utils.seeding import seed_for
from common_utils.specs import ActsInChunks, Obs, Player
from common_utils.wire import pack, unpack
from serve.latency import Latencies
from serve.session import Inputs, Request, Session

INTERNAL_ERROR = 1011  # closes a connection whose request failed
MOST_TEXT = 600  # characters of an error that a client gets


@dataclass(frozen=True)
class ServerOptions:
    """How it is reached, and what one client may take.

    max_bytes: of one request.
    report_every: requests after which percentiles of latency are printed.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    token: str = ""
    seed: int = 1
    max_clients: int = 32
    max_bytes: int = 16 * 2**20
    report_every: int = 1000


class PolicyServer:
    """Serves ``player``, which must be in eval mode.

    Args:
        inputs: what it reads, and the clients' names for that.
        greeting: what clients get when they connect, besides what is known here.
        say: prints a line.
    """

    def __init__(
        self,
        player: Player,
        inputs: Inputs,
        greeting: Mapping[str, Any],
        options: ServerOptions,
        say: Callable[[str], None] = print,
    ) -> None:
        self.player, self.inputs, self.options, self.say = player, inputs, options, say
        self.greeting = {**greeting, "observations": inputs.described()}
        self.address = ""
        self.latencies = Latencies()  # of all requests
        self._recent = Latencies()
        self._connections = 0
        self._policy = ThreadPoolExecutor(1, "policy")

    async def run(self, stop: asyncio.Event, started: Callable[[], None] = lambda: None) -> None:
        """Serve until ``stop``; ``started`` is called once clients can connect."""
        options = self.options
        serve = websockets_module("asyncio.server").serve
        try:
            server = await serve(
                self._serve_client, options.host, options.port, process_request=self._gate(),
                max_size=options.max_bytes, max_queue=2, **SERVER_OPTIONS,
            )  # fmt: skip
        except OSError as error:
            reason = error.strerror or str(error)
            raise UserError(
                f"--host, --port: {options.host}:{options.port}: {reason}; expected a free port of "
                "this machine"
            ) from None
        async with server:
            host, port = next(iter(server.sockets)).getsockname()[:2]
            self.address = f"ws://[{host}]:{port}" if ":" in host else f"ws://{host}:{port}"
            started()
            await stop.wait()
        self._policy.shutdown()

    def _gate(self) -> Callable[[Any, Any], Any]:
        """Those with the token, as long as there is room."""
        admit = gate(self.options.token)

        def checked(connection: Any, request: Any) -> Any:
            refusal = admit(connection, request)
            full = len(connection.server.connections) >= self.options.max_clients
            if refusal is not None or not full or request.path == HEALTH:
                return refusal
            return connection.respond(
                HTTPStatus.SERVICE_UNAVAILABLE,
                f"{self.options.max_clients} clients are connected, which is the limit\n",
            )

        return checked

    async def _serve_client(self, connection: Any) -> None:
        """One client, from its greeting to its end."""
        closed = websockets_module("exceptions").ConnectionClosed
        self._connections += 1
        client = _Client(self._connections, Session(self.inputs), self._generator())
        try:
            await connection.send(pack(self.greeting))
            while True:
                data, began = await connection.recv(), time.perf_counter()
                await connection.send(await self._answer(client, data, began))
                client.previous = time.perf_counter() - began
                self._count(client.previous)
        except closed:
            pass
        except UserError as error:
            self.say(f"client {client.number}: {printable(shortened(str(error), 200))}")
            await _end(connection, str(error))
        except Exception as error:  # of the policy: this client's end, and nobody else's
            print_error(f"client {client.number}: {type(error).__name__}, see below")
            traceback.print_exc(file=sys.stderr)
            await _end(connection, f"the server failed: {type(error).__name__}: {error}")

    def _generator(self) -> torch.Generator | None:
        """The random numbers of a connection; None if the policy draws none."""
        if not self.player.stochastic_eval:
            return None
        seed = seed_for(self.options.seed, "serve", self._connections)
        return torch.Generator().manual_seed(seed)

    async def _answer(self, client: _Client, data: Any, began: float) -> bytes:
        request = client.session.read(unpack(data, self.options.max_bytes))
        timing = {"prev_total_ms": client.previous * 1e3} if client.previous else {}
        if not request.obs:
            return pack({"server_timing": timing})
        loop = asyncio.get_running_loop()
        actions, took = await loop.run_in_executor(self._policy, self._act, request, client)
        waited = time.perf_counter() - began - took
        timing = {"infer_ms": took * 1e3, "wait_ms": waited * 1e3, **timing}
        return pack({"actions": actions, "server_timing": timing})

    def _act(self, request: Request, client: _Client) -> tuple[np.ndarray, float]:
        """Actions float32 [T, A] or [B, T, A], and their seconds; in the policy's thread."""
        began = time.perf_counter()
        tensors = {key: torch.from_numpy(value) for key, value in request.obs.items()}
        with torch.no_grad():
            chunk = self._chunk(tensors, client.generator)
        actions = chunk.float().numpy()
        if not np.isfinite(actions).all():
            raise UserError("the policy's action is NaN or infinite")
        return np.ascontiguousarray(actions), time.perf_counter() - began

    def _chunk(self, obs: Obs, rng: torch.Generator | None) -> torch.Tensor:
        """[T, A] or [B, T, A]: all that the policy decides on, T being 1 without chunks."""
        if isinstance(self.player, ActsInChunks):
            return self.player.act_chunk(obs, eval_mode=True, generator=rng)
        return self.player.act(obs, eval_mode=True, cpu=True, generator=rng).unsqueeze(-2)

    def _count(self, seconds: float) -> None:
        self._recent.add(seconds)
        if len(self._recent) >= self.options.report_every:
            self.latencies.merge(self._recent)
            self.say(self._recent.report())
            self._recent = Latencies()

    def summary(self) -> str:
        """Latencies of everything so far."""
        self.latencies.merge(self._recent)
        self._recent = Latencies()
        return f"{self._connections} connections, {self.latencies.report()}"


@dataclass
class _Client:
    """One connection; ``previous``: seconds that its last request took."""

    number: int
    session: Session
    generator: torch.Generator | None
    previous: float = 0.0


async def _end(connection: Any, text: str) -> None:
    """Say why, and close; the client may be gone already."""
    try:
        await connection.send(shortened(text, MOST_TEXT))
        await connection.close(INTERNAL_ERROR, "the request could not be answered")
    except websockets_module("exceptions").ConnectionClosed:
        pass
