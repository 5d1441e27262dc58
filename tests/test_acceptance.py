"""The acceptance, as it was asked for: 2, 4 and 8 simultaneous calls at the real three seconds."""

import asyncio

import httpx

from tests.aws.fake_aws import Endpoint, Function, emulation, environment
from tests.support.assertions import assert_staircase
from tests.support.entry_points import burst
from tests.support.server import PYTHON_M, serve


async def call_a_server(calls: int) -> None:
    with serve(*PYTHON_M, PORT="0", WORK_SECONDS="3") as server:
        async with httpx.AsyncClient(base_url=server.url, timeout=60) as client:
            answers = await burst(client, calls)
    assert_staircase(answers, 3)


def call_a_deployment(calls: int) -> None:
    with environment(work_seconds=3, max_wait_seconds=25.5) as handler:
        endpoint = Endpoint(Function(handler))
        answers = endpoint.burst(calls)
    assert_staircase(answers, 3)
    assert not endpoint.function.overlapped()


async def test_acceptance() -> None:
    """Each answer takes at least 3 s more than the last; all bursts go side by side."""
    with emulation():
        await asyncio.gather(
            *(call_a_server(calls) for calls in (2, 4, 8)),
            asyncio.to_thread(call_a_deployment, 8),
        )
