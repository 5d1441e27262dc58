"""The server around the app: one process; uvicorn, where it is that, drains on SIGTERM."""

import asyncio
import os
import signal
import socket
import stat
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from types import FrameType
from typing import Any

from starlette.responses import Response

from handler.settings import InvalidSetting, Settings

try:
    import fcntl
except ImportError:  # pragma: no cover
    fcntl = None  # type: ignore[assignment]  # Windows

HANG_SECONDS = 10
"""Seconds beyond a turn after which work that goes on at a shutdown is cancelled."""

GRACE = 0.25
"""Seconds for which a server that shuts down still accepts connections, to reject their requests.

The rest of a burst that is arriving gets a 503, where it would otherwise meet a closing socket.
"""


def uvicorn_server() -> Any:
    """Return the uvicorn server that runs in this process, or None.

    It is found by its handler of SIGINT, which is a method of it.
    """
    server = getattr(signal.getsignal(signal.SIGINT), "__self__", None)
    return server if hasattr(server, "should_exit") else None


def unfit(settings: Settings) -> str | None:
    """Return in a line why this process should not serve, or None."""
    if uvicorn_server():
        from handler.connections import require

        try:
            require(settings.max_waiting)
        except InvalidSetting as error:
            return f"handler: {error}"
    if not is_only_process():
        return (
            "handler: refusing to start a second process on one socket: they would process several "
            "requests at once; start one worker (--workers 1, and unset WEB_CONCURRENCY)"
        )
    return None


def is_only_process() -> bool:
    """Return whether no other process that called this shares a listening socket with this one.

    A worker inherits the bound socket, by fork or by spawn, whichever server started it. POSIX
    locks belong to a process and a file: one of all that share the socket gets its lock, and
    keeps it until it exits, or closes a descriptor of that socket.
    """
    if fcntl is None:  # pragma: no cover
        return True
    for descriptor in bound_sockets():
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:  # pragma: no cover
            pass  # a system that locks no sockets
    return True


def bound_sockets() -> Iterator[int]:
    """Yield the descriptors of this process's stream sockets that can listen, or do."""
    for name in os.listdir("/dev/fd"):
        with suppress(OSError):  # the listing's own descriptor is closed by now
            if not stat.S_ISSOCK(os.fstat(int(name)).st_mode):
                continue
            inherited = socket.socket(fileno=int(name))
            try:
                address = inherited.getsockname()
                is_bound = address[1] if isinstance(address, tuple) else address
                if (
                    is_bound
                    and inherited.type == socket.SOCK_STREAM
                    and not is_connected(inherited)
                ):
                    yield int(name)
            finally:
                inherited.detach()


def is_connected(connection: socket.socket) -> bool:
    try:
        connection.getpeername()
    except OSError:
        return False
    return True


@asynccontextmanager
async def serving(
    close: Callable[[], None], settings: Settings, rejection: Response
) -> AsyncIterator[None]:
    """Bound the server's connections, and call `close` in the event loop on SIGTERM and SIGINT.

    `rejection` is the response to clients whose connections exceed the bound.
    `GRACE` seconds after the signal uvicorn begins to exit, which it does, with status 0, when
    every request is answered. Work that goes on a turn and `HANG_SECONDS` later is cancelled, or
    when `--timeout-graceful-shutdown` says so; by a second SIGINT, immediately. A third is
    uvicorn's own to handle.
    Servers other than uvicorn are left as they are.
    """
    loop = asyncio.get_running_loop()
    server = uvicorn_server()

    def stop(signum: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, force)
        loop.call_soon_threadsafe(close)
        loop.call_soon_threadsafe(loop.call_later, GRACE, setattr, server, "should_exit", True)

    def force(signum: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, server.handle_exit)
        for task in server.server_state.tasks:
            loop.call_soon_threadsafe(task.cancel)

    if server:
        from handler.connections import bound  # with uvicorn, which the Lambda function has not

        bound(server.config, settings.max_waiting, rejection)
        if server.config.timeout_graceful_shutdown is None:
            server.config.timeout_graceful_shutdown = settings.work_seconds + HANG_SECONDS
        signal.signal(signal.SIGINT, stop)
        signal.signal(signal.SIGTERM, stop)
    yield
