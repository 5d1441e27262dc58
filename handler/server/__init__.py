"""The server around the app: what uvicorn alone does not do.

Alone it starts as many processes, and accepts as many connections, as come; at a shutdown it works
through the queue, and waits without limit for work that hangs. Of other servers than uvicorn, only
the processes are counted.
"""

import asyncio
import logging
import signal
import socket
import sys
from collections.abc import Callable
from functools import partial
from types import FrameType
from typing import Any

from starlette.responses import Response

from handler.server.descriptors import Acceptor, connection_limit
from handler.server.exit import exit_after, is_command_line
from handler.server.one_process import (
    Address,
    OtherProcess,
    claim,
    configured_addresses,
    hand_over,
    inherited_addresses,
)
from handler.settings import InvalidSetting, Settings

logger = logging.getLogger("uvicorn.error")

HANG_SECONDS = 10
"""On shutdown, work may run for a turn and this many seconds; then it is cancelled."""

LEFTOVER_SECONDS = 2
"""Seconds that threads and child processes which the work left have to end after a shutdown."""

GRACE_SECONDS = 0.25
"""Seconds for which a server that shuts down still accepts connections, to reject their requests.

The rest of a burst that is arriving gets a 503, where it would otherwise meet a closed socket.
"""


async def startup_error(
    settings: Settings, close: Callable[[], None], rejection: Response
) -> str | None:
    """Make the server that is starting keep the promises; return in a line why it cannot, or None.

    `close` is called when it begins to shut down: the app then rejects all that wait or arrive.
    `rejection` is the response to clients beyond the limit on connections.
    """
    server = None
    try:
        server = uvicorn_server()
        if server is None and is_command_line():
            raise LookupError("uvicorn's server was not found")
        addresses = await claim_addresses(server, settings)
        if server:
            acceptor = limit_connections(server, settings, rejection)
            Draining(server, settings, acceptor, close, addresses)
    except OtherProcess as error:
        if server:
            server.config.uds = None  # which uvicorn would remove, though it is the other one's
        return f"handler: {error}"
    except InvalidSetting as error:
        return f"handler: {error}"
    except Exception as error:  # whatever it is: a check that cannot be made counts as failed
        return f"handler: cannot tell whether requests would be processed one at a time: {error!r}"
    return None


def warn_of_no_lifespan() -> None:
    """Log what is missing where a server serves the app, but did not run its lifespan."""
    try:
        is_served = bool(inherited_addresses())
    except OSError:
        is_served = True  # more likely than a test that lists no sockets
    if is_served:
        logger.warning(
            "The app's lifespan was not run (--lifespan off, or mounted in another app): nothing "
            "stops a second process, limits connections, or rejects the queue on shutdown."
        )


def uvicorn_server() -> Any:
    """Return the uvicorn server that runs in this process, or None.

    It is found by its handler of SIGINT, which is a method of it.
    """
    server = getattr(signal.getsignal(signal.SIGINT), "__self__", None)
    return server if hasattr(server, "should_exit") else None


async def claim_addresses(server: Any, settings: Settings) -> set[Address]:
    """Claim the addresses that this process serves, and return them.

    uvicorn's command line tells them. Otherwise they are those of the sockets that the process has
    inherited, or if there is none, those that uvicorn is going to bind.
    """
    configured = configured_addresses(server.config) if server else set()
    if configured and is_command_line():
        addresses, hint = configured, ""
    else:
        addresses = inherited_addresses() or configured
        hint = "; or do not pass another service's socket on to this process"
    seconds = settings.work_seconds + HANG_SECONDS + 3 * LEFTOVER_SECONDS
    await claim(addresses, seconds, hint)
    return addresses


def limit_connections(server: Any, settings: Settings, rejection: Response) -> Acceptor | None:
    """Limit the connections of a uvicorn server that is about to listen; return what accepts them.

    On Windows, whose sockets are no file descriptors, that is the event loop, as ever: None.
    Raises `InvalidSetting` when the limit on open files, or another HTTP parser, does not allow it.
    """
    # Imported only here: other servers do without uvicorn.
    from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

    from handler.server.connection import Connection

    if server.config.http_protocol_class is not HttpToolsProtocol:
        raise InvalidSetting(
            f"--http {server.config.http}: only httptools lets the size and time of a request's "
            "head be limited; install it (pip install httptools), and drop the option"
        )
    if sys.platform == "win32":  # pragma: no cover
        server.config.http_protocol_class = partial(Connection, idle={})
        return None
    acceptor = Acceptor(server, connection_limit(settings.max_waiting), rejection)
    server.config.http_protocol_class = partial(Connection, idle=acceptor.idle)
    return acceptor


class Draining:
    """A uvicorn server's shutdown, whatever begins it: a signal, or `--limit-max-requests`.

    The gate closes, and `GRACE_SECONDS` later uvicorn shuts down: it exits, with status 0, once
    every request has its response. Work that is still running a turn and `HANG_SECONDS` later (or
    after `--timeout-graceful-shutdown`) is cancelled; on a second SIGINT, immediately. uvicorn
    handles a third. What the work left has `LEFTOVER_SECONDS` more.
    """

    def __init__(
        self,
        server: Any,
        settings: Settings,
        acceptor: Acceptor | None,
        close: Callable[[], None],
        addresses: set[Address],
    ) -> None:
        self._server = server
        self._acceptor = acceptor
        self._close = close
        self._addresses = addresses
        self._loop = asyncio.get_running_loop()
        if server.config.timeout_graceful_shutdown is None:
            server.config.timeout_graceful_shutdown = settings.work_seconds + HANG_SECONDS
        self._uvicorn = server.main_loop, server.shutdown
        server.main_loop, server.shutdown = self._main_loop, self._shutdown
        signal.signal(signal.SIGINT, self._stop)
        signal.signal(signal.SIGTERM, self._stop)

    async def _main_loop(self) -> None:
        if self._acceptor:  # pragma: no branch - not on Windows
            self._acceptor.start()
        main_loop, _ = self._uvicorn
        await main_loop()
        self._begin()
        await asyncio.sleep(GRACE_SECONDS)

    async def _shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        _, shutdown = self._uvicorn
        await shutdown(sockets)
        exit_after(LEFTOVER_SECONDS)

    def _begin(self) -> None:
        self._close()
        hand_over(self._addresses)

    def _stop(self, signum: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, self._force)
        self._loop.call_soon_threadsafe(self._begin)
        self._server.should_exit = True
        # For work that blocks the event loop, or swallows its cancellation.
        limit = self._server.config.timeout_graceful_shutdown
        exit_after(GRACE_SECONDS + limit + 2 * LEFTOVER_SECONDS)

    def _force(self, signum: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, self._server.handle_exit)
        for task in self._server.server_state.tasks:
            self._loop.call_soon_threadsafe(task.cancel)
        exit_after(2 * LEFTOVER_SECONDS)
