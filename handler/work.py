"""The work. Replace this file: by default it is a sleep."""

import asyncio


async def work(seconds: float) -> None:
    """Do the work of one request.

    An `async def` runs in the event loop, which it must not block; a plain `def` runs in a thread,
    always the same one. `seconds` is `WORK_SECONDS`, the minimum duration: faster work is padded to
    it. What is returned, if anything, is the response's `result`. An exception is logged, and the
    client gets a 500; an `HTTPException` of FastAPI's is the response.
    On AWS a retry may do the work of one request twice, though never two at the same time.
    """
    await asyncio.sleep(seconds)
