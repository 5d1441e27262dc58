"""Told to stop: who is inside finishes, the rest are told."""

import asyncio
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from types import FrameType

GRACE = 0.25
"""Seconds for which a server that is told to stop goes on accepting connections, to refuse them.

The rest of a burst that is arriving is told to come again, where it would meet a closing socket.
"""


def draining(close: Callable[[], None]) -> Callable[[object], AbstractAsyncContextManager[None]]:
    """Make an ASGI lifespan that calls `close` in the event loop on SIGTERM and SIGINT.

    `GRACE` seconds later uvicorn is told to exit, which it does, with status 0, when every call is
    answered. A second SIGINT is uvicorn's own to handle. No other server's signals are touched.
    """

    @asynccontextmanager
    async def lifespan(app: object) -> AsyncIterator[None]:
        loop = asyncio.get_running_loop()
        interrupt = signal.getsignal(signal.SIGINT)
        server = getattr(interrupt, "__self__", None)

        def stop(signum: int, frame: FrameType | None) -> None:
            signal.signal(signal.SIGINT, interrupt)
            loop.call_soon_threadsafe(drain)

        def drain() -> None:
            close()
            loop.call_later(GRACE, setattr, server, "should_exit", True)

        if hasattr(server, "should_exit"):
            signal.signal(signal.SIGINT, stop)
            signal.signal(signal.SIGTERM, stop)
        yield

    return lifespan
