"""The required acceptance test: 2, 4 and 8 simultaneous requests at the real three seconds."""

import asyncio

import httpx

from tests.aws.fake_aws import Endpoint, Function, emulation, environment
from tests.support.assertions import assert_staircase
from tests.support.entry_points import burst
from tests.support.server import PYTHON_M, serve


async def check_server(n: int) -> None:
    with serve(*PYTHON_M, PORT="0", WORK_SECONDS="3") as server:
        async with httpx.AsyncClient(base_url=server.url, timeout=60) as client:
            responses = await burst(client, n)
    assert_staircase(responses, 3)


def check_deployment(n: int) -> None:
    with environment(work_seconds=3, max_wait_seconds=25.8) as handler:
        endpoint = Endpoint(Function(handler))
        responses = endpoint.burst(n)
    assert_staircase(responses, 3)
    assert not endpoint.function.overlapped()


async def test_acceptance() -> None:
    """Each response takes at least 3 s longer than the one before; all bursts run concurrently."""
    with emulation():
        await asyncio.gather(
            *(check_server(n) for n in (2, 4, 8)),
            asyncio.to_thread(check_deployment, 8),
        )
