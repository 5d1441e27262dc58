"""The acceptance, as it was asked for: 2, 4 and 8 simultaneous calls at the real three seconds.

Each burst meets a server, or a deployment, of its own; all of them run side by side.
"""

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import httpx

from tests.doors import burst
from tests.server import LIMIT, PYTHON_M, serve
from tests.waiting_room import Endpoint, Function, emulation, environment

Bursts = dict[tuple[str, int], tuple[list[httpx.Response], float]]
"""The answers, in order of return, and the seconds until the last: by place and number of calls."""

ready = Barrier(7)
"""All begin at once, when everything is set up: the set-up is what takes the machine's time."""


async def call_a_server(calls: int) -> tuple[list[httpx.Response], float]:
    with serve(*PYTHON_M, PORT="0") as server:
        async with httpx.AsyncClient(base_url=server.url, timeout=60) as client:
            ready.wait(LIMIT)
            began = time.monotonic()
            return await burst(client, calls), time.monotonic() - began


def call_a_deployment(calls: int) -> tuple[list[httpx.Response], float]:
    with environment(work_seconds=3) as handler:
        endpoint = Endpoint(Function(handler))
        ready.wait(LIMIT)
        began = time.monotonic()
        answers = endpoint.burst(calls)
        seconds = time.monotonic() - began
    assert not endpoint.function.overlapped()
    return answers, seconds


def call_a_deployment_that_is_taken(calls: int) -> tuple[list[httpx.Response], float]:
    endpoint = Endpoint(Function(lambda event: event))
    with endpoint.function.environment:
        ready.wait(LIMIT)
        began = time.monotonic()
        return endpoint.burst(calls), time.monotonic() - began


def run() -> Bursts:
    """Let all the bursts go, and return what came of them."""
    with emulation(), ThreadPoolExecutor(ready.parties) as threads:
        bursts = {("taken", 1): threads.submit(call_a_deployment_that_is_taken, 1)}
        for calls in (2, 4, 8):
            bursts["server", calls] = threads.submit(asyncio.run, call_a_server(calls))
            bursts["deployment", calls] = threads.submit(call_a_deployment, calls)
        return {burst: future.result() for burst, future in bursts.items()}
