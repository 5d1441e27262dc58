"""The work: the one file to replace. For now, a sleep."""

import asyncio


async def work(seconds: float) -> None:
    """Do the work of one request.

    An `async def` runs in the event loop, which it must not block; a plain `def` runs in a thread.
    `seconds` is `WORK_SECONDS`: the shortest that a turn takes, whenever the work is done, and
    what clients and API Gateway are told to expect.
    What is returned is not used. What is raised gets the client a 500, and is logged.
    On AWS a retry may do the work of one request twice, though never two at the same time.
    """
    await asyncio.sleep(seconds)
