"""Apps whose work hangs, or leaves something running: `uvicorn tests.support.hanging:NAME`."""

import asyncio
import multiprocessing
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

from handler.app import create_app
from handler.settings import Settings

FOREVER = 100.0
"""Seconds that are longer than any test waits."""

pool = ThreadPoolExecutor()


async def hang_in_to_thread(seconds: float) -> None:
    await asyncio.to_thread(time.sleep, FOREVER)


async def leave_in_the_default_executor(seconds: float) -> None:
    asyncio.get_running_loop().run_in_executor(None, time.sleep, FOREVER)


def leave_in_a_pool(seconds: float) -> None:
    pool.submit(time.sleep, FOREVER)


def leave_a_child(seconds: float) -> int | None:
    child = multiprocessing.get_context("fork").Process(target=time.sleep, args=[FOREVER])
    child.start()
    return child.pid


async def swallow_cancellation(seconds: float) -> None:
    while True:
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(FOREVER)


async def block_the_loop(seconds: float) -> None:
    time.sleep(FOREVER)  # noqa: ASYNC251 - as it should not


settings = Settings.load()
to_thread = create_app(settings, hang_in_to_thread)
executor = create_app(settings, leave_in_the_default_executor)
own_pool = create_app(settings, leave_in_a_pool)
child = create_app(settings, leave_a_child)
swallowing = create_app(settings, swallow_cancellation)
blocking = create_app(settings, block_the_loop)
