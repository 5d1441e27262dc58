"""The acceptance, as it was asked for: 2, 4 and 8 simultaneous calls at the real three seconds.

Each burst meets a server, or a deployment, of its own; all of them run side by side.
"""

import asyncio
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Barrier

import httpx
import pytest

from tests.doors import burst
from tests.server import LIMIT, PYTHON_M, serve
from tests.test_contract import assert_staircase
from tests.waiting_room import Endpoint, emulation, environment

Bursts = dict[tuple[str, int], "Future[tuple[list[httpx.Response], float]]"]


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
        endpoint = Endpoint(handler)
        ready.wait(LIMIT)
        began = time.monotonic()
        answers = endpoint.burst(calls)
        seconds = time.monotonic() - began
    assert not endpoint.function.overlapped()
    return answers, seconds


def call_a_deployment_that_is_taken(calls: int) -> tuple[list[httpx.Response], float]:
    endpoint = Endpoint(lambda event: event)
    with endpoint.function.environment:
        ready.wait(LIMIT)
        began = time.monotonic()
        return endpoint.burst(calls), time.monotonic() - began


@pytest.fixture(scope="module")
def bursts() -> Iterator[Bursts]:
    with emulation(), ThreadPoolExecutor(ready.parties) as threads:
        yield {
            ("taken", 1): threads.submit(call_a_deployment_that_is_taken, 1),
            **{
                ("server", calls): threads.submit(asyncio.run, call_a_server(calls))
                for calls in (2, 4, 8)
            },
            **{
                ("deployment", calls): threads.submit(call_a_deployment, calls)
                for calls in (2, 4, 8)
            },
        }


@pytest.mark.parametrize("calls", [2, 4, 8])
@pytest.mark.parametrize("place", ["server", "deployment"])
def test_a_burst(bursts: Bursts, place: str, calls: int) -> None:
    """All are answered 200, in less than 29 s, and each takes at least 3 s more than the last."""
    answers, seconds = bursts[place, calls].result()
    assert_staircase(answers, 3)
    assert seconds < 29


def test_no_turn_in_time(bursts: Bursts) -> None:
    """Who gets no turn in time is told so before the gateway's 29 s are over."""
    [answer], seconds = bursts["taken", 1].result()
    assert answer.status_code == 503
    assert answer.headers["retry-after"] == "4"
    assert answer.json() == {"detail": "No turn came free in time; try again later."}
    assert 28 <= seconds < 29
