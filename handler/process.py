"""What the process owes its callers: to be the only worker, and to drain when told to stop."""

import asyncio
import signal
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from types import FrameType

STARTUP_FAILURE = 3
"""uvicorn's exit status for a worker that cannot start; its supervisor then starts no other."""

GRACE = 0.25
"""Seconds for which a server that is told to stop goes on accepting connections, to refuse them.

The rest of a burst that is arriving is told to come again, where it would meet a closing socket.
"""

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def refuse_workers() -> None:
    """Exit with `STARTUP_FAILURE` and one line when this process is one of several workers."""
    # uvicorn starts workers through multiprocessing, which has been imported in a child of it;
    # to import it here would cost a tenth of a cold start.
    multiprocessing = sys.modules.get("multiprocessing")
    if multiprocessing is None:
        return
    config = getattr(multiprocessing.current_process(), "_kwargs", {}).get("config")
    workers = getattr(config, "workers", 1)
    if workers > 1:
        print(
            f"handler: {workers} workers would work on {workers} calls at a time; "
            "start one: --workers 1, and no WEB_CONCURRENCY",
            file=sys.stderr,
        )
        raise SystemExit(STARTUP_FAILURE)


def draining(close: Callable[[], None]) -> Callable[[object], AbstractAsyncContextManager[None]]:
    """Make an ASGI lifespan that calls `close` in the event loop on SIGTERM and SIGINT.

    The server's own handler runs `GRACE` seconds later, or at once when the signal comes again:
    uvicorn then stops when every call is answered.
    """

    @asynccontextmanager
    async def lifespan(app: object) -> AsyncIterator[None]:
        with _on_stop(asyncio.get_running_loop(), close):
            yield

    return lifespan


@contextmanager
def _on_stop(loop: asyncio.AbstractEventLoop, close: Callable[[], None]) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread is told of signals
        return
    servers = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    received: set[int] = set()
    timer: asyncio.TimerHandle | None = None

    def stop(number: int, frame: FrameType | None) -> None:
        received.add(number)
        loop.call_soon_threadsafe(drain, number, frame)

    def drain(number: int, frame: FrameType | None) -> None:
        nonlocal timer
        close()
        server = servers[signal.Signals(number)]
        if not callable(server):
            return
        if timer is None:
            timer = loop.call_later(GRACE, server, number, frame)
        else:
            timer.cancel()
            server(number, frame)

    for number in STOP_SIGNALS:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number, server in servers.items():
            signal.signal(number, server)
        # Once drained, uvicorn raises the signal again, and would die of it with status 143.
        # Every call has its answer: blocked, the signal lets the process end with 0.
        if signal.SIGTERM in received and hasattr(signal, "pthread_sigmask"):
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
