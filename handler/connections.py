"""As many connections as there are file descriptors, and none that never sends a request.

uvicorn and asyncio bound neither: one client that opens connections would shut out all others.
What is relied on of uvicorn's protocol stands in `Connection`, and nowhere else.
"""

import asyncio
import errno
import logging
import os
import socket
from asyncio.trsock import TransportSocket
from contextlib import suppress
from functools import partial
from math import inf
from typing import Any

from starlette.responses import Response
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from handler.settings import InvalidSetting

try:
    import resource
except ImportError:  # pragma: no cover
    resource = None  # type: ignore[assignment]  # Windows: sockets are no file descriptors there

OPEN_MAX = 10240
"""The highest limit that macOS takes, where it says that there is none."""

HEAD_SECONDS = 10
"""Seconds that a connection has to send the head of its next request.

nginx's name for it is client_header_timeout, Node's headersTimeout, HAProxy's timeout http-request.
"""

HEAD_BYTES = 65536
"""How long a request's head may be, as in h11."""

HEADERS = 100
"""How many headers a request may have, as in Apache and gunicorn."""

LINGER_SECONDS = 1.0
"""Seconds for which a rejected client may read why, until its connection is closed."""

IDLE_SECONDS = 0.5
"""Seconds after which a connection without a request makes room for a new one, if need be."""

REJECTED_AT_ONCE = 64
"""How many clients are rejected in an iteration of the event loop, which has other things to do."""

LOG_SECONDS = 60.0
"""Seconds from one line of the log to the next, however many connections are rejected."""

BAD_REQUEST = (
    b"HTTP/1.1 400 Bad Request\r\n"
    b"content-type: text/plain; charset=utf-8\r\ncontent-length: 30\r\nconnection: close\r\n\r\n"
    b"Invalid HTTP request received."
)

logger = logging.getLogger("uvicorn.error")


def raise_limit() -> int:
    """Raise the soft limit on open files to the hard one, and return it."""
    if resource is None:  # pragma: no cover
        return OPEN_MAX
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = OPEN_MAX if hard == resource.RLIM_INFINITY else hard
    if soft == resource.RLIM_INFINITY:
        return limit
    if soft < limit:
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    return max(soft, limit)


def require(max_waiting: int) -> int:
    """Return how many connections there may be: those of `max_waiting` clients and more.

    An eighth of the file descriptors, at least 16 and at most 64, is left for files and the work.
    Raises `InvalidSetting` when they are too few.
    """
    limit = raise_limit()
    connections = limit - max(16, min(64, limit // 8))
    if max_waiting >= connections:
        raise InvalidSetting(
            f"MAX_WAITING={max_waiting}: must be below {connections} where {limit} files may be "
            "open: lower it, or raise that limit (ulimit -Hn)"
        )
    return connections


def bound(config: Config, max_waiting: int, rejection: Response) -> None:
    """Bound the connections of the uvicorn server that is about to start with `config`.

    `rejection` is what clients beyond the bound get. Another protocol than httptools' is left as
    it is. Raises `InvalidSetting`.
    """
    overflow = Overflow(require(max_waiting), rejection)
    if config.http_protocol_class is HttpToolsProtocol:
        config.http_protocol_class = partial(Connection, overflow=overflow)  # type: ignore[assignment]


class Overflow:
    """What clients beyond `connections` get: a rejection, immediately, or the place of an idle one.

    To be made in the running event loop. `idle` are the connections without a request, and since
    when, the oldest first.
    """

    def __init__(self, connections: int, rejection: Response) -> None:
        self.connections = connections
        self.response = b"HTTP/1.1 %d Service Unavailable\r\n%b\r\n%b" % (
            rejection.status_code,
            b"".join(b"%b: %b\r\n" % header for header in rejection.raw_headers),
            bytes(rejection.body),
        )
        self.idle: dict[Connection, float] = {}
        self._paused: set[int] = set()
        self._logs_again: float = -inf
        self._loop = asyncio.get_running_loop()
        self._handle_others = self._loop.get_exception_handler()
        self._loop.set_exception_handler(self._handle)
        self._spare = os.open(os.devnull, os.O_RDONLY)

    def log(self) -> None:
        """Say that a client was rejected, unless that was said within the last minute."""
        if self._loop.time() >= self._logs_again:
            self._logs_again = self._loop.time() + LOG_SECONDS
            logger.warning(
                "Rejecting connections beyond %d: no more files may be open (ulimit -Hn)",
                self.connections,
            )

    def make_room(self) -> bool:
        """Cut off the connection that has been idle for longest; return whether there was one."""
        oldest = next(iter(self.idle), None)
        if oldest is None or self._loop.time() - self.idle[oldest] < IDLE_SECONDS:
            return False
        del self.idle[oldest]
        oldest.transport.abort()
        return True

    def _handle(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if "socket" in context and getattr(error, "errno", None) in (
            errno.EMFILE,
            errno.ENFILE,
        ):
            # Where no descriptor is left, asyncio says so for each client, stops listening for a
            # second and lets them wait (python/cpython#151615). Until then, this listens.
            listener = context["socket"]
            if listener.fileno() not in self._paused:
                self._paused.add(listener.fileno())
                self._reject_waiting(listener)
                loop.call_soon(self._listen, listener, listener.fileno())
        elif "_start_serving" in context["message"] and isinstance(error, ValueError):
            pass  # the second is over, and the server has closed
        elif self._handle_others:
            self._handle_others(loop, context)
        else:
            loop.default_exception_handler(context)

    def _listen(self, listener: TransportSocket, descriptor: int) -> None:
        self._paused.discard(descriptor)
        if listener.fileno() == descriptor:  # else it is closed by now
            self._loop.add_reader(descriptor, self._reject_waiting, listener)

    def _reject_waiting(self, listener: TransportSocket) -> None:
        self.log()
        with suppress(OSError):  # if a thread of the work's took it the last time
            os.close(self._spare)
        self._spare = -1
        accepting = socket.socket(fileno=listener.fileno())
        with suppress(OSError):  # no client is waiting
            for _ in range(REJECTED_AT_ONCE):
                client, _ = accepting.accept()
                with client, suppress(OSError):
                    client.setblocking(False)
                    client.send(self.response)
                    client.shutdown(socket.SHUT_WR)
                    client.recv(HEAD_BYTES)  # closing with a request unread would cut the response
        accepting.detach()
        with suppress(OSError):
            self._spare = os.open(os.devnull, os.O_RDONLY)


class BadRequest(Exception):
    """Raised out of the parser's callbacks; uvicorn then calls `send_400_response`."""


class Connection(HttpToolsProtocol):
    """uvicorn's, with bounds on how long and how much a client may take to send a request.

    A request that is sent before the one ahead of it is answered is dropped, and the connection
    closes after that response: simultaneous requests have a connection each.
    A client that does not read its responses is cut off.
    """

    def __init__(self, *args: Any, overflow: Overflow, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.timeout_keep_alive = max(HEAD_SECONDS, self.timeout_keep_alive)
        self._overflow = overflow
        self._ignores = False
        self._unparsed = 0

    @property
    def _idle(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._close_after(self.timeout_keep_alive)
        if len(self.connections) > self._overflow.connections and not self._overflow.make_room():
            self._overflow.log()
            self._reject(self._overflow.response)
        self._overflow.idle[self] = self.loop.time()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._overflow.idle.pop(self, None)
        self._unset_keepalive_if_required()

    def data_received(self, data: bytes) -> None:
        if self._ignores:
            return
        self._unparsed += len(data)
        super().data_received(data)
        if self._unparsed > HEAD_BYTES and not self._ignores:
            self.send_400_response("Request head too large.")

    def on_message_begin(self) -> None:
        if not self._idle:
            raise BadRequest
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        if len(self.headers) == HEADERS:
            raise BadRequest
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        if len(self.url) + sum(len(name) + len(value) for name, value in self.headers) > HEAD_BYTES:
            raise BadRequest
        self._unparsed = 0
        super().on_headers_complete()
        self._overflow.idle.pop(self, None)
        self._unset_keepalive_if_required()

    def on_body(self, body: bytes) -> None:
        self._unparsed = 0
        super().on_body(body)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._overflow.idle[self] = self.loop.time()
        if self.transport.get_write_buffer_size():  # the kernel's is full of what was not read
            self.transport.abort()

    def send_400_response(self, msg: str) -> None:
        if self._idle:
            self._reject(BAD_REQUEST)
        else:
            self._ignores = True
            self.cycle.keep_alive = False

    def timeout_keep_alive_handler(self) -> None:
        self.transport.abort()

    def _reject(self, response: bytes) -> None:
        # Closing with something unread would cut the response: the client closes, or the timer.
        self._ignores = True
        self.transport.write(response)
        self._close_after(LINGER_SECONDS)

    def _close_after(self, seconds: float) -> None:
        if self.timeout_keep_alive_task:
            self.timeout_keep_alive_task.cancel()
        self.timeout_keep_alive_task = self.loop.call_later(
            seconds, self.timeout_keep_alive_handler
        )

    def _unset_keepalive_if_required(self) -> None:
        # uvicorn's timer ends with the first byte of a request, this one with the last of its head.
        if self.transport.is_closing() or not self._idle:
            super()._unset_keepalive_if_required()
