"""Notice a caller that hangs up, by the ASGI message that says so."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from starlette.types import Receive


class Disconnected(Exception):
    """Raised when the caller closed its connection; the body was cancelled where it awaited."""


@asynccontextmanager
async def while_connected(receive: Receive) -> AsyncIterator[Callable[[], None]]:
    """Run the body only for as long as the caller stays connected.

    Yields a function that ends the watch: what is begun after that is finished.
    `receive` is the request's ASGI channel; its body is read and dropped.
    Raises `Disconnected`.
    """
    try:
        async with asyncio.timeout(None) as connection:
            watcher = asyncio.create_task(_expire_on_disconnect(connection, receive))

            def unwatch() -> None:
                watcher.cancel()
                connection.reschedule(None)  # takes back what a hang-up in this pass has scheduled

            try:
                yield unwatch
            finally:
                watcher.cancel()
    except TimeoutError:
        if connection.expired():
            raise Disconnected from None
        raise


async def _expire_on_disconnect(connection: asyncio.Timeout, receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    connection.reschedule(asyncio.get_running_loop().time())
