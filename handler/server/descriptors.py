"""As many connections as there are file descriptors, and some descriptors left for the work.

An event loop accepts whoever comes, until the work cannot open a file. Then asyncio stops listening
for a second (python/cpython#151615), and uvloop closes new connections without a response. So the
connections are accepted here: each client gets one, or a response that says why not.
"""

import asyncio
import logging
import os
import socket
import sys
from contextlib import suppress
from math import inf
from typing import Any

from starlette.responses import Response

from handler.settings import InvalidSetting

if sys.platform != "win32":  # pragma: no branch - its sockets are no file descriptors
    import resource

OPEN_FILES = 10240
"""The limit on open files to ask for, which is macOS's real maximum.

The programs that the work starts inherit it, and older ones close that many descriptors singly.
"""

ACCEPTED_AT_ONCE = 64
"""Most clients to accept or reject in an iteration of the event loop."""

IDLE_SECONDS = 0.5
"""Seconds after which a connection without a request makes room for a new one, if need be."""

LINGER_SECONDS = 1.0
"""How long a rejected client has to send its request, and then to read the response."""

HANDSHAKE_SECONDS = 10
"""Maximum seconds for a TLS handshake, in place of asyncio's 60."""

PAUSE_SECONDS = 0.1
"""Seconds without accepting, when the work has taken every descriptor."""

REQUEST_BYTES = 65536
"""How much of a rejected request is read: closing with a byte unread would cut the response."""

LOG_SECONDS = 60.0
"""Minimum seconds between log lines about rejections."""

logger = logging.getLogger("uvicorn.error")


def reserve(limit: int) -> int:
    """Return how many of `limit` descriptors are not for connections: an eighth, from 16 to 64."""
    return max(16, min(64, limit // 8))


def connection_limit(max_waiting: int) -> int:
    """Return how many connections there may be, more than `max_waiting`.

    Raises the soft limit on open files, to what `max_waiting` needs or to `OPEN_FILES`.
    Raises `InvalidSetting` when the hard limit is too low for `max_waiting`.
    """
    limit = wanted = max(OPEN_FILES, max_waiting + 1 + reserve(OPEN_FILES))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY:
        limit = max(soft, wanted if hard == resource.RLIM_INFINITY else min(wanted, hard))
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    connections = limit - reserve(limit)
    if max_waiting >= connections:
        raise InvalidSetting(
            f"MAX_WAITING={max_waiting}: must be below {connections} at a limit of {limit} open "
            "files; lower it, or raise the limit (ulimit -Hn)"
        )
    return connections


class Acceptor:
    """Accepts connections for a uvicorn server, in place of the event loop: at most `limit`.

    At the limit, the connection that has been idle for longest makes room for a new one; if none
    is idle, the new client gets `rejection` immediately.
    `idle` are the connections without a request, the oldest first, and since when they are.
    uvicorn closes it like the servers that an event loop makes.
    """

    def __init__(self, server: Any, limit: int, rejection: Response) -> None:
        """Create it in the running event loop, before `server` starts to listen."""
        self.idle: dict[asyncio.Transport, float] = {}
        self.rejection = b"HTTP/1.1 %d Service Unavailable\r\n%b\r\n%b" % (
            rejection.status_code,
            b"".join(b"%b: %b\r\n" % header for header in rejection.raw_headers),
            bytes(rejection.body),
        )
        self.sockets: set[socket.socket] = set()
        self._server = server
        self._limit = limit
        self._most_lingering = reserve(limit) // 4
        self._opening: dict[asyncio.Protocol, asyncio.Task[None]] = {}
        self._lingering: set[socket.socket] = set()
        self._spare = os.open(os.devnull, os.O_RDONLY)
        self._logs_again = -inf
        self._loop = asyncio.get_running_loop()
        # Until `start` the event loop accepts, as many in an iteration as the backlog has.
        self._backlog, server.config.backlog = server.config.backlog, 1

    def start(self) -> None:
        """Take over the sockets on which the server listens."""
        for server in self._server.servers:
            originals = [original.fileno() for original in server.sockets]
            listeners = [socket.socket(fileno=os.dup(original)) for original in originals]
            # uvloop has no reader to remove: it accepts until the server is closed.
            removed = [self._loop.remove_reader(original) for original in originals]
            if not all(removed):
                close_but_keep_path(server, listeners[0].getsockname())
            self.sockets.update(listeners)
        for listener in self.sockets:
            listener.setblocking(False)
            listener.listen(self._backlog)
            self._listen(listener)
        self._server.servers.append(self)

    def close(self) -> None:
        """Stop listening."""
        for listener in self.sockets:
            self._loop.remove_reader(listener)
            listener.close()
        self.sockets.clear()
        with suppress(OSError):  # the work may have it
            os.close(self._spare)
        self._spare = -1

    async def wait_closed(self) -> None:
        """Return once the last rejected client had its time."""
        await asyncio.sleep(LINGER_SECONDS if self._lingering else 0)

    def _listen(self, listener: socket.socket) -> None:
        if listener in self.sockets:
            self._loop.add_reader(listener, self._accept, listener)

    def _accept(self, listener: socket.socket) -> None:
        connections = self._server.server_state.connections
        for _ in range(ACCEPTED_AT_ONCE):
            full = len(connections) + len(self._opening.keys() - connections) >= self._limit
            if full and self._evict_idle():
                return  # its descriptor is free in the next iteration
            try:
                client, _ = listener.accept()
            except (BlockingIOError, ConnectionAbortedError):
                return
            except OSError:
                if not self._reject_by_spare(listener):
                    return
                continue
            if full:
                self._reject(client, may_linger=len(self._lingering) < self._most_lingering)
            else:
                protocol = self._make_protocol()
                self._opening[protocol] = self._loop.create_task(self._open(protocol, client))

    def _make_protocol(self) -> asyncio.Protocol:
        protocol: asyncio.Protocol = self._server.config.http_protocol_class(
            config=self._server.config,
            server_state=self._server.server_state,
            app_state=self._server.lifespan.state,
            _loop=self._loop,
        )
        return protocol

    async def _open(self, protocol: asyncio.Protocol, client: socket.socket) -> None:
        ssl = self._server.config.ssl
        timeout = HANDSHAKE_SECONDS if ssl else None
        try:
            await self._loop.connect_accepted_socket(
                lambda: protocol, client, ssl=ssl, ssl_handshake_timeout=timeout
            )
        except OSError:  # the client disconnected meanwhile, or did not speak TLS
            client.close()
        finally:
            del self._opening[protocol]

    def _evict_idle(self) -> bool:
        """Cut off the connection that has been idle for longest; return whether there was one."""
        oldest = next(iter(self.idle), None)
        if oldest is None or self._loop.time() - self.idle[oldest] < IDLE_SECONDS:
            return False
        del self.idle[oldest]
        oldest.abort()
        return True

    def _reject_by_spare(self, listener: socket.socket) -> bool:
        """Reject a client for whom the work has left no descriptor; return whether one was."""
        rejected = False
        with suppress(OSError):  # there is no spare one, or no client
            os.close(self._spare)
            self._reject(listener.accept()[0], may_linger=False)
            rejected = True
        try:
            self._spare = os.open(os.devnull, os.O_RDONLY)
        except OSError:  # a thread of the work was faster: wait until it has closed something
            self._spare = -1
            self._loop.remove_reader(listener)
            self._loop.call_later(PAUSE_SECONDS, self._listen, listener)
            return False
        return rejected

    def _reject(self, client: socket.socket, may_linger: bool) -> None:
        self._log()
        client.setblocking(False)
        try:
            client.send(self.rejection)
            client.shutdown(socket.SHUT_WR)
            client.recv(REQUEST_BYTES)
        except BlockingIOError:
            if may_linger:
                self._lingering.add(client)
                self._loop.add_reader(client, self._close, client)
                self._loop.call_later(LINGER_SECONDS, self._close, client)
                return
        except OSError:
            pass  # the client disconnected
        client.close()

    def _close(self, client: socket.socket) -> None:
        if client in self._lingering:
            self._lingering.discard(client)
            self._loop.remove_reader(client)
            with suppress(OSError):
                client.recv(REQUEST_BYTES)
            client.close()

    def _log(self) -> None:
        """Log that clients are rejected, unless that was logged within the last minute."""
        if self._loop.time() >= self._logs_again:
            self._logs_again = self._loop.time() + LOG_SECONDS
            logger.warning(
                "Too many connections: rejecting those beyond %d (limit on open files, ulimit -Hn)",
                self._limit,
            )


def close_but_keep_path(server: asyncio.Server, address: object) -> None:
    """Close a server whose socket lives on in a duplicate: uvloop would unlink a Unix socket."""
    if isinstance(address, str) and address:
        os.rename(address, f"{address}.moved")
        server.close()
        os.rename(f"{address}.moved", address)
    else:
        server.close()
