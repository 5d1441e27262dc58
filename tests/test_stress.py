"""The service under stress: `--scale 25` gives the figures of `tests/README.md`."""

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from functools import partial
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path

import httpx
import pytest

from handler import app as module
from handler.app import create_app
from handler.arrival import arrival
from handler.settings import Settings
from tests.support.assertions import SERVER_TIMING, assert_staircase, is_short, simultaneous
from tests.support.clients import Client, Response, fence
from tests.support.entry_points import burst, client_for, connect, simultaneous_burst
from tests.support.overload import overload
from tests.support.server import LIMIT, SLEEPING, UVICORN, Server, resident_memory, serve
from tests.support.virtual_time import app_on_virtual_time

WORK_SECONDS = 0.2
QUIET = (*UVICORN, "--no-access-log", "--loop", "uvloop", "tests.support.apps:sleeping")


@pytest.fixture(scope="module", params=["asyncio", "uvloop"])
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    command = (*UVICORN, "--loop", request.param, "tests.support.apps:sleeping")
    with serve(*command, WORK_SECONDS=str(WORK_SECONDS)) as server:
        yield server


def descriptors(server: Server) -> int:
    """Count the server's open file descriptors."""
    return len(os.listdir(f"/proc/{server.process.pid}/fd"))


async def crowd(server: Server, n: int, seconds: float) -> list[tuple[float, Response]]:
    """Send `n` requests; a random half of the clients disconnect at random times.

    Returns the timestamp and the response of each other request, in order of return.
    """
    rng = random.Random(n)
    responses: list[tuple[float, Response]] = []

    async def get(stays: bool) -> None:
        timestamp = time.time()
        client = await Client.get(server.url, headers=f"X-Request-Start: t={timestamp:.6f}\r\n")
        if stays:
            responses.append((timestamp, await client.response()))
        else:
            await asyncio.sleep(rng.uniform(0, 0.6 * n * seconds))
            await client.disconnect()

    staying = [rng.random() < 0.5 for _ in range(n)]
    await asyncio.gather(*map(get, staying))
    assert [response.status for _, response in responses] == [200] * sum(staying)
    return responses


async def test_crowd(scale: int) -> None:
    """When half of a crowd disconnects, the rest are served as promised, and nothing leaks."""
    n, seconds = 200 * scale, 0.005
    settings = {
        "WORK_SECONDS": str(seconds),
        "MAX_WAITING": str(n),
        "TRUST_REQUEST_START": "true",
    }
    with serve(*QUIET, **settings) as server:
        idle = descriptors(server)
        await crowd(server, n, seconds)
        memory = resident_memory(server.process.pid)
        responses = await crowd(server, n, seconds)
        assert resident_memory(server.process.pid) < 1.1 * memory
        for _ in range(100):  # the server closes a connection some iterations after its client
            await fence(server.url)
            if descriptors(server) == idle:
                break
        assert descriptors(server) == idle
    results = [json.loads(response.body) for _, response in responses]
    before = [result["result"] for result in results]
    assert before == sorted(before)
    assert all(begun == ended for begun, ended in before)
    for (earlier, later), (result, following) in zip(
        pairwise(responses), pairwise(results), strict=True
    ):
        timing = SERVER_TIMING.fullmatch(later[1].headers["server-timing"])
        assert timing
        # By the timestamps, and by what the server made of them: it may have been interrupted.
        apart = later[0] - earlier[0], result["elapsed"] - float(timing[1]) / 1e3
        if max(map(abs, apart)) <= simultaneous(seconds):
            assert not is_short(result["elapsed"], following["elapsed"], seconds)


async def test_shutdown_at_random(scale: int) -> None:
    """At a shutdown during a burst every client gets a 200 or a 503; the exit status is 0."""
    for seed in range(2 * scale):
        rng = random.Random(seed)
        with serve(*QUIET, WORK_SECONDS="0.05") as server:

            async def get(after: float, server: Server = server) -> int:
                await asyncio.sleep(after)
                client = await Client.get(server.url)
                return (await client.response()).status

            async def stop(after: float, server: Server = server) -> None:
                await asyncio.sleep(after)
                server.process.send_signal(signal.SIGTERM)

            requests = [get(rng.uniform(0, 0.1)) for _ in range(30)]
            statuses, _ = await asyncio.gather(asyncio.gather(*requests), stop(rng.uniform(0, 0.5)))
            assert set(statuses) <= {200, 503}
            assert server.process.wait(LIMIT) == 0


async def test_overload(scale: int) -> None:
    """Under an overload, new clients get their 503 while a turn lasts, and turns go on.

    At full size, on a calm machine: within half a turn, and turns are hardly longer.
    """
    turn = 1.0
    with (
        serve(*SLEEPING["python -m"], PORT="0", WORK_SECONDS=str(turn), MAX_WAITING="4") as server,
        ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process,
    ):
        overloading = asyncio.get_running_loop().run_in_executor(
            process, overload, server.url, 200 + 8 * scale, 3.5 * turn
        )
        await asyncio.sleep(turn)
        waits = []
        for _ in range(3):
            sent = time.monotonic()
            response = await (await Client.get(server.url)).response()
            if response.status == 503:
                waits.append(time.monotonic() - sent)
            await asyncio.sleep(turn / 2)
        responses = await overloading
    served = [when for when, status in responses if status == 200]
    # The minimum, because the machine itself may stall during a turn.
    shortest = min(later - earlier for earlier, later in pairwise(served))
    assert min(waits) < shortest
    if scale > 1:
        assert max(waits) < turn / 2
        assert shortest <= 1.1 * turn
    print(f"new clients: {waits} s; rejections: {sum(status == 503 for _, status in responses)}")


async def half_a_request_line(server: Server) -> None:
    client = await Client.connect(server.url)
    client.writer.write(b"GET /te")
    await client.writer.drain()
    await client.disconnect()


async def a_mebibyte_of_headers(server: Server) -> None:
    client = await Client.get(server.url, headers=f"X: {'x' * 2**20}\r\n")
    with suppress(ConnectionError, asyncio.IncompleteReadError):
        await client.response()


async def no_http_at_all(server: Server) -> None:
    client = await Client.connect(server.url)
    client.writer.write(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n")
    assert (await client.response()).status == 400


async def a_reset_mid_response(server: Server) -> None:
    client = await Client.get(server.url)
    assert await client.reader.readexactly(9) == b"HTTP/1.1 "
    client.writer.transport.abort()


async def a_reset_while_waiting(server: Server) -> None:
    client = await Client.get(server.url)
    await client.writer.drain()
    client.writer.transport.abort()


SCENARIOS = [
    half_a_request_line,
    a_mebibyte_of_headers,
    no_http_at_all,
    a_reset_mid_response,
    a_reset_while_waiting,
]


async def test_broken_clients(server: Server) -> None:
    """Clients that misbehave do not affect the others."""
    async with httpx.AsyncClient(base_url=server.url, timeout=LIMIT) as client:
        await connect(client, 8)
        scenarios = asyncio.gather(*(scenario(server) for scenario in SCENARIOS))
        sent = simultaneous_burst(client, 8, WORK_SECONDS)
        responses, _ = await asyncio.gather(sent, scenarios)
    assert_staircase(responses, WORK_SECONDS)


@pytest.mark.virtual_time
async def test_work_that_fails_at_random(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the work fails now and then, that request gets a 500; the others' steps are exact."""
    app_on_virtual_time(monkeypatch)
    rng = random.Random(10)
    failures = 0

    async def fail_at_random(seconds: float) -> None:
        nonlocal failures
        if rng.random() < 0.3:
            failures += 1
            raise ZeroDivisionError
        await asyncio.sleep(seconds)

    client = client_for(create_app(Settings(work_seconds=0.25), fail_at_random))
    responses = await burst(client, 10)
    assert Counter(response.status_code for response in responses) == {
        200: 10 - failures,
        500: failures,
    }
    assert failures
    assert_staircase([response for response in responses if response.status_code == 200], 0.25)


@pytest.mark.virtual_time
@pytest.mark.parametrize("step", [-3600, 3600])
async def test_clock_fault(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the wall clock is stepped by an hour during a wait, every `elapsed` is still right."""
    wall = 1_795_500_000.0
    app_on_virtual_time(monkeypatch)
    monkeypatch.setattr(
        module,
        "arrival",
        partial(arrival, clock=asyncio.get_running_loop().time, wall=lambda: wall),
    )
    client = client_for(
        create_app(Settings(work_seconds=0.2, trust_request_start=True), asyncio.sleep)
    )
    headers = {"X-Request-Start": f"t={wall}"}
    before = [asyncio.create_task(client.get("/test", headers=headers)) for _ in range(3)]
    await asyncio.sleep(0)
    await client.get("/nothing")
    wall += step
    after = [asyncio.create_task(client.get("/test", headers=headers)) for _ in range(3)]
    responses = [await response for response in (*before, *after)]
    assert_staircase(responses, 0.2)
    assert responses[-1].json()["elapsed"] < 2


def test_schemathesis(tmp_path: Path) -> None:
    """Whatever is sent, the responses conform to the service's OpenAPI document."""
    with serve(*UVICORN, "tests.support.apps:sleeping", WORK_SECONDS="0.01") as server:
        done = subprocess.run(
            [
                *(sys.executable, "-m", "schemathesis.cli", "run", f"{server.url}/openapi.json"),
                *("--checks", "all", "--max-examples", "30", "--no-color"),
            ],
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=4 * LIMIT,
            check=False,
        )
    assert done.returncode == 0, done.stdout
    assert "No issues found" in done.stdout
