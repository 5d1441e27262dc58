"""uvicorn, where it is what serves: one worker, or none; told to stop, it first drains."""

import asyncio
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from types import FrameType
from typing import Any

from starlette.responses import Response

STARTUP_FAILURE = 3
"""uvicorn's exit status for a worker that cannot start; its supervisor then starts no other."""

GRACE = 0.25
"""Seconds for which a server that is told to stop goes on accepting connections, to refuse them.

The rest of a burst that is arriving is told to come again, where it would meet a closing socket.
"""


def uvicorn_server() -> Any:
    """Return the uvicorn server that runs in this process, or None.

    It is found by its handler of SIGINT, a method that it installs before it imports the app.
    """
    server = getattr(signal.getsignal(signal.SIGINT), "__self__", None)
    return server if hasattr(server, "should_exit") else None


def refuse_workers() -> None:
    """Exit with `STARTUP_FAILURE` and one line when this process is one of several workers."""
    server = uvicorn_server()
    # With --reload uvicorn starts one, whatever number it was given.
    if server and server.config.workers > 1 and not server.config.reload:
        workers = server.config.workers
        print(
            f"handler: {workers} workers would work on {workers} calls at a time; "
            "start one: --workers 1, and no WEB_CONCURRENCY",
            file=sys.stderr,
        )
        raise SystemExit(STARTUP_FAILURE)


@asynccontextmanager
async def serving(
    close: Callable[[], None], max_waiting: int, rejection: Response
) -> AsyncIterator[None]:
    """Bound the server's connections, and call `close` in the event loop on SIGTERM and SIGINT.

    `rejection` is what clients get that find no room beside `max_waiting` others.
    `GRACE` seconds after the signal uvicorn is told to exit, which it does, with status 0, when
    every request is answered. A second SIGINT is uvicorn's own to handle.
    Another server than uvicorn is left as it is. Raises `InvalidSetting`.
    """
    loop = asyncio.get_running_loop()
    interrupt = signal.getsignal(signal.SIGINT)
    server = uvicorn_server()

    def stop(signum: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, interrupt)
        loop.call_soon_threadsafe(close)
        loop.call_soon_threadsafe(loop.call_later, GRACE, setattr, server, "should_exit", True)

    if server:
        from handler.connections import bound  # with uvicorn, which the Lambda function has not

        bound(server.config, max_waiting, rejection)
        signal.signal(signal.SIGINT, stop)
        signal.signal(signal.SIGTERM, stop)
    yield
