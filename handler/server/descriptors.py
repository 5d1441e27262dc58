"""As many connections as there are file descriptors.

Where none is left, asyncio lets clients wait without a word; here they get a rejection, or the
place of a connection that has no request.
"""

import asyncio
import errno
import logging
import os
import socket
from asyncio.trsock import TransportSocket
from contextlib import suppress
from math import inf
from typing import Any

from starlette.responses import Response

from handler.settings import InvalidSetting

try:
    import resource
except ImportError:  # pragma: no cover
    resource = None  # type: ignore[assignment]  # Windows: sockets are no file descriptors there

OPEN_MAX = 10240
"""The highest limit that macOS takes, where it says that there is none."""

IDLE_SECONDS = 0.5
"""Seconds after which a connection without a request makes room for a new one, if need be."""

REJECTED_AT_ONCE = 64
"""How many clients are rejected in an iteration of the event loop, which has other things to do."""

LOG_SECONDS = 60.0
"""Seconds from one line of the log to the next, however many connections are rejected."""

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
        self.idle: dict[Any, float] = {}
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
                    client.recv(65536)  # closing with a request unread would cut the response
        accepting.detach()
        with suppress(OSError):
            self._spare = os.open(os.devnull, os.O_RDONLY)
