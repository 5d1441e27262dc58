"""The server around the app: what uvicorn alone does not do. Other servers are left as they are."""

import asyncio
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from types import FrameType
from typing import Any

from starlette.responses import Response

from handler.server.descriptors import require
from handler.server.one_process import is_only_process
from handler.settings import InvalidSetting, Settings

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


def startup_error(settings: Settings) -> str | None:
    """Return in a line why this process should not serve, or None."""
    if uvicorn_server():
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


@asynccontextmanager
async def lifespan(
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
        # Imported only here: it needs uvicorn, which the Lambda package lacks.
        from handler.server.connection import limit_connections

        limit_connections(server.config, settings.max_waiting, rejection)
        if server.config.timeout_graceful_shutdown is None:
            server.config.timeout_graceful_shutdown = settings.work_seconds + HANG_SECONDS
        signal.signal(signal.SIGINT, stop)
        signal.signal(signal.SIGTERM, stop)
    yield
