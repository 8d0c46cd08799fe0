"""Websocket connections that carry the messages of ``common_utils.wire``.

The protocol is that of openpi's policy servers: the server sends a greeting (a map) to whoever
connects; then every binary message is answered by one binary message. If something fails, the
answer is text that says what, and the server closes the connection with code 1011. A token, if the
server has one, is sent as ``Authorization: Api-Key TOKEN``; ``GET /healthz`` answers "OK".

:class:`Link` is the asking side. :func:`gate` and :data:`SERVER_OPTIONS` are what every server of
``websockets`` (its ``sync`` and its ``asyncio`` one) needs of this.
"""

from __future__ import annotations

import hmac
import logging
import os
import time
from collections.abc import Callable, Sequence
from http import HTTPStatus
from typing import Any
from urllib.parse import urlsplit

from common_utils.errors import ConfigError, UserError, shortened
from common_utils.extras import optional
from common_utils.wire import MAX_BYTES, pack, unpack

HEALTH = "/healthz"
IDLE_EVERY = 0.5  # seconds
TOKEN_VARIABLE = "IBRL_TOKEN"
"""Names the environment variable with the token, so that no file or list of processes shows it."""
_QUIET = logging.getLogger(__name__)  # websockets would print a traceback for every port scan
_QUIET.addHandler(logging.NullHandler())
_QUIET.propagate = False
SERVER_OPTIONS: dict[str, Any] = {
    "logger": _QUIET,
    "compression": None,  # numbers do not compress, and decompressed messages may have any size
    "origins": [None],  # a page in somebody's browser may not use a server on this machine
}


class LinkError(UserError):
    """The other side cannot be used."""


class LinkLost(LinkError):
    """There is no connection, or it ended or was silent for too long; trying again may help."""


class LinkRefused(LinkError):
    """The other side answered, and its answer is an error."""


def websockets_module(name: str) -> Any:
    """``websockets.NAME``; UserError if the package is not installed."""
    return optional(f"websockets.{name}", "serve", "connections to other processes")


def is_url(text: str) -> bool:
    """Whether ``text`` is the address of a server rather than a file."""
    return text.startswith(("ws://", "wss://"))


def check_token(token: str, field: str) -> None:
    """Raise UserError, naming ``field``, unless ``token`` can be sent in a header."""
    if not all(" " < c <= "~" for c in token):
        raise UserError(f"{field}: expected a token of visible ASCII characters, without spaces")


def check_url(url: str, field: str) -> None:
    """Raise ConfigError, naming ``field``, unless ``url`` is ws://HOST:PORT or wss://HOST."""
    try:
        parts = urlsplit(url)
        usable = is_url(url) and bool(parts.hostname) and parts.port != 0 and not parts.username
    except ValueError:  # a port that is no number
        usable = False
    if not usable or any(c.isspace() for c in url):
        raise ConfigError(
            f"{field}: found '{shortened(url)}', expected ws://HOST:PORT or wss://HOST"
        )


def renamed(pairs: Sequence[str], keys: Sequence[str], field: str) -> dict[str, str]:
    """Our ``keys`` -> the other side's names, which ``pairs`` (THEIRS=OURS) give where they differ.

    Raises ConfigError, naming ``field``, for what is no pair, and for two with one name.
    """
    names = {key: key for key in keys}
    for pair in pairs:
        theirs, equals, ours = pair.rpartition("=")
        if not (theirs and equals) or ours not in names:
            raise ConfigError(
                f"{field}: found '{pair}', expected THEIRS=OURS with one of {', '.join(keys)}"
            )
        names[ours] = theirs
    if twice := [name for name in names.values() if list(names.values()).count(name) > 1]:
        raise ConfigError(f"{field}: found '{twice[0]}' twice, expected a name for each")
    return names


class Link:
    """The asking side of a connection; connects when it is first used, and after a loss again.

    Args:
        url: ws://HOST:PORT or wss://HOST.
        token: sent to the server; "" takes that of the environment variable ``IBRL_TOKEN``.
        timeout: seconds for connecting, for the greeting, and for each answer.
        max_bytes: of one answer.
        field: the option that named the URL, for messages.

    After an error the connection is closed, so that a late answer is never taken for the next.
    """

    def __init__(
        self,
        url: str,
        *,
        token: str = "",
        timeout: float = 10.0,
        max_bytes: int = MAX_BYTES,
        field: str = "url",
    ) -> None:
        check_url(url, field)
        self.url, self.timeout, self.max_bytes = url, timeout, max_bytes
        self._token, self._who = token, f"{field}: {url}"
        self._socket: Any = None
        # called about twice a second while an answer is awaited; may raise to end that
        self.idle: Callable[[], None] | None = None
        self.greeting: Any = None

    @property
    def is_open(self) -> bool:
        """Whether it is connected, as far as is known."""
        return self._socket is not None

    def connect(self) -> Any:
        """Connect if necessary; returns the server's greeting.

        Raises LinkLost if nobody answers in time, LinkRefused if the server does not let us in.
        """
        if self._socket is None:
            self._socket = self._open()
            try:
                self.greeting = self._receive()
            except BaseException:
                self.close()
                raise
        return self.greeting

    def ask(self, message: Any) -> Any:
        """Send ``message`` and return the answer; connects if necessary.

        Raises LinkLost, LinkRefused, and WireError for what cannot be packed or unpacked.
        """
        data = pack(message)
        self.connect()
        lost = websockets_module("exceptions").ConnectionClosed
        try:
            self._socket.send(data)
            return self._receive()
        except (lost, OSError) as error:
            self.close()
            raise LinkLost(f"{self._who}: the connection was lost ({_reason(error)})") from None
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the connection; safe to call twice."""
        socket, self._socket = self._socket, None
        if socket is not None:
            socket.close()

    def _open(self) -> Any:
        websockets_module("sync")
        client, errors = websockets_module("sync.client"), websockets_module("exceptions")
        token = self._token or os.environ.get(TOKEN_VARIABLE, "")
        check_token(token, TOKEN_VARIABLE)
        try:
            return client.connect(
                self.url,
                compression=None,
                max_size=self.max_bytes,
                open_timeout=self.timeout,
                close_timeout=1,
                additional_headers={"Authorization": f"Api-Key {token}"} if token else None,
            )
        except errors.InvalidStatus as error:
            raise self._not_let_in(error.response) from None
        except (OSError, errors.InvalidHandshake, EOFError) as error:
            raise LinkLost(
                f"{self._who}: no server answers there ({_reason(error)}); "
                "expected one that is running"
            ) from None

    def _not_let_in(self, response: Any) -> LinkError:
        status, said = response.status_code, (response.body or b"").decode(errors="replace")
        what = f"{self._who}: the server refuses the connection ({status} {shortened(said, 200)})"
        if status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
            return LinkRefused(f"{what}; expected its token in {TOKEN_VARIABLE}")
        return LinkLost(what) if status >= 500 else LinkRefused(what)

    def _next(self) -> Any:
        """The next message; TimeoutError if it takes too long."""
        end = time.monotonic() + self.timeout
        while True:
            left = end - time.monotonic()
            try:
                return self._socket.recv(timeout=min(max(left, 0), IDLE_EVERY))
            except TimeoutError:
                if left <= IDLE_EVERY:
                    raise
            if self.idle is not None:
                self.idle()

    def _receive(self) -> Any:
        errors = websockets_module("exceptions")
        try:
            answer = self._next()
        except TimeoutError:
            raise LinkLost(f"{self._who}: no answer within {self.timeout:g} s") from None
        except errors.ConnectionClosed as error:
            raise LinkLost(f"{self._who}: the connection was lost ({_reason(error)})") from None
        if isinstance(answer, str):
            last = answer.strip().rpartition("\n")[2]  # of a traceback, as openpi's servers send
            raise LinkRefused(f"{self._who}: the server answered: {shortened(last, 400)}")
        return unpack(answer, self.max_bytes)


def gate(token: str = "") -> Callable[[Any, Any], Any]:
    """A ``process_request`` for servers: answers ``/healthz``, and lets in who has the token."""

    def admit(connection: Any, request: Any) -> Any:
        if request.path == HEALTH:
            return connection.respond(HTTPStatus.OK, "OK\n")
        given = request.headers.get_all("Authorization")
        wanted = f"Api-Key {token}".encode()
        if token and not (
            len(given) == 1
            and hmac.compare_digest(given[0].encode(errors="surrogateescape"), wanted)
        ):
            return connection.respond(
                HTTPStatus.UNAUTHORIZED, "expected the header 'Authorization: Api-Key TOKEN'\n"
            )
        return None

    return admit


def _reason(error: BaseException) -> str:
    return shortened(str(error) or type(error).__name__, 160)
