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
from tests.support.clients import Answer, Client, fence
from tests.support.entry_points import burst, calling, connect
from tests.support.flood import flood
from tests.support.server import LIMIT, PYTHON_M, UVICORN, Server, resident_memory, serve

WORK_SECONDS = 0.3
QUIET = (*UVICORN, "--no-access-log", "--loop", "uvloop", "handler.main:app")


@pytest.fixture(scope="module", params=["h11", "httptools"])
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    command = (*UVICORN, "--http", request.param, "handler.main:app")
    with serve(*command, WORK_SECONDS=str(WORK_SECONDS)) as server:
        yield server


def descriptors(server: Server) -> int:
    """Count the server's open file descriptors."""
    return len(os.listdir(f"/proc/{server.process.pid}/fd"))


async def crowd(server: Server, callers: int, seconds: float) -> list[tuple[float, Answer]]:
    """Let so many call, and a random half of them hang up at a random moment.

    Returns when each of the others called and what it was answered, in order of return.
    """
    chance = random.Random(callers)
    answers: list[tuple[float, Answer]] = []

    async def call(stays: bool) -> None:
        stamp = time.time()
        caller = await Client.call(server.url, headers=f"X-Request-Start: t={stamp:.6f}\r\n")
        if stays:
            answers.append((stamp, await caller.answer()))
        else:
            await asyncio.sleep(chance.uniform(0, 0.6 * callers * seconds))
            await caller.hang_up()

    staying = [chance.random() < 0.5 for _ in range(callers)]
    await asyncio.gather(*map(call, staying))
    assert [answer.status for _, answer in answers] == [200] * sum(staying)
    return answers


async def test_a_crowd(scale: int) -> None:
    """Half of a crowd hangs up at random; the rest are served as promised, and nothing is left."""
    callers, seconds = 200 * scale, 0.005
    settings = {
        "WORK_SECONDS": str(seconds),
        "MAX_WAITING": str(callers),
        "TRUST_REQUEST_START": "true",
    }
    with serve(*QUIET, **settings) as server:
        idle = descriptors(server)
        await crowd(server, callers, seconds)
        memory = resident_memory(server.process.pid)
        answers = await crowd(server, callers, seconds)
        assert resident_memory(server.process.pid) < 1.1 * memory
        for _ in range(100):  # the server closes a connection some passes after its caller
            await fence(server.url)
            if descriptors(server) == idle:
                break
        assert descriptors(server) == idle
    turns = []
    elapsed = [json.loads(answer.body)["elapsed"] for _, answer in answers]
    for (called, answer), took in zip(answers, elapsed, strict=True):
        timing = SERVER_TIMING.fullmatch(answer.headers["server-timing"])
        assert timing
        turns.append((called + float(timing[1]) / 1e3, called + took))
    for (_, ended), (began, _) in pairwise(turns):
        assert began > ended - 1e-4  # stamps and header are rounded, and the wall clock is trimmed
    for index, (earlier, later) in enumerate(pairwise(elapsed)):
        if abs(answers[index + 1][0] - answers[index][0]) <= simultaneous(seconds):
            assert not is_short(earlier, later, seconds)


async def test_stopped_at_random(scale: int) -> None:
    """Told to stop in the middle of a burst, every caller gets a 200 or a 503; it exits 0."""
    for seed in range(2 * scale):
        moment = random.Random(seed)
        with serve(*QUIET, WORK_SECONDS="0.05") as server:

            async def call(after: float, server: Server = server) -> int:
                await asyncio.sleep(after)
                caller = await Client.call(server.url)
                return (await caller.answer()).status

            async def stop(after: float, server: Server = server) -> None:
                await asyncio.sleep(after)
                server.process.send_signal(signal.SIGTERM)

            calls = [call(moment.uniform(0, 0.1)) for _ in range(30)]
            statuses, _ = await asyncio.gather(asyncio.gather(*calls), stop(moment.uniform(0, 0.5)))
            assert set(statuses) <= {200, 503}
            assert server.process.wait(LIMIT) == 0


async def test_a_flood(scale: int) -> None:
    """While many call again once refused, a newcomer is told at once, and the turns go on."""
    with (
        serve(*PYTHON_M, PORT="0", WORK_SECONDS="1", MAX_WAITING="4") as server,
        ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process,
    ):
        flooding = asyncio.get_running_loop().run_in_executor(
            process, flood, server.url, 200 + 8 * scale, 3.5
        )
        await asyncio.sleep(1)
        waits = []
        for _ in range(3):
            called = time.monotonic()
            newcomer = await (await Client.call(server.url)).answer()
            if newcomer.status == 503:
                waits.append(time.monotonic() - called)
            await asyncio.sleep(0.5)
        answered = await flooding
    assert waits
    assert max(waits) < 0.5
    served = [when for when, status in answered if status == 200]
    # The least, since the machine itself may stall during a turn.
    assert min(later - earlier for earlier, later in pairwise(served)) <= 1.1
    print(f"newcomers: {waits} s; refusals: {sum(status == 503 for _, status in answered)}")


async def half_a_request_line(server: Server) -> None:
    caller = await Client.connect(server.url)
    caller.writer.write(b"GET /te")
    await caller.writer.drain()
    await caller.hang_up()


async def a_mebibyte_of_headers(server: Server) -> None:
    caller = await Client.call(server.url, headers=f"X: {'x' * 2**20}\r\n")
    with suppress(ConnectionError, asyncio.IncompleteReadError):
        await caller.answer()


async def no_http_at_all(server: Server) -> None:
    caller = await Client.connect(server.url)
    caller.writer.write(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n")
    assert (await caller.answer()).status == 400


async def a_reset_in_mid_answer(server: Server) -> None:
    caller = await Client.call(server.url)
    assert await caller.reader.readexactly(9) == b"HTTP/1.1 "
    caller.writer.transport.abort()


async def a_reset_while_waiting(server: Server) -> None:
    caller = await Client.call(server.url)
    await caller.writer.drain()
    caller.writer.transport.abort()


ATTACKS = [
    half_a_request_line,
    a_mebibyte_of_headers,
    no_http_at_all,
    a_reset_in_mid_answer,
    a_reset_while_waiting,
]


async def test_broken_clients(server: Server) -> None:
    """Slow and broken clients get what they deserve, and the others do not notice."""
    async with httpx.AsyncClient(base_url=server.url, timeout=LIMIT) as client:
        await connect(client, 8)
        attacks = asyncio.gather(*(attack(server) for attack in ATTACKS))
        answers, _ = await asyncio.gather(burst(client, 8), attacks)
    assert_staircase(answers, WORK_SECONDS)


async def test_work_that_fails_at_random() -> None:
    """Where one work in ten fails, its caller gets a 500 and all others the exact step."""
    chance = random.Random(10)
    failures = 0

    async def fail_at_random(seconds: float) -> None:
        nonlocal failures
        if chance.random() < 0.1:
            failures += 1
            raise ZeroDivisionError
        await asyncio.sleep(seconds)

    client = calling(create_app(Settings(work_seconds=0.1), fail_at_random))
    answers = await burst(client, 20)
    assert Counter(answer.status_code for answer in answers) == {
        200: 20 - failures,
        500: failures,
    }
    assert failures
    assert_staircase([answer for answer in answers if answer.status_code == 200], 0.1)


@pytest.mark.parametrize("step", [-3600, 3600])
async def test_clock_trouble(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wall clock that is stepped by an hour during a wait changes no answer into nonsense."""
    wall = 1_795_500_000.0
    monkeypatch.setattr(module, "arrival", lambda stamp: arrival(stamp, wall=lambda: wall))
    client = calling(create_app(Settings(work_seconds=0.1, trust_request_start=True)))
    headers = {"X-Request-Start": f"t={wall}"}
    before = [asyncio.create_task(client.get("/test", headers=headers)) for _ in range(3)]
    await asyncio.sleep(0)
    await client.get("/nothing")
    wall += step
    after = [asyncio.create_task(client.get("/test", headers=headers)) for _ in range(3)]
    answers = [await answer for answer in (*before, *after)]
    assert_staircase(answers, 0.1)
    assert answers[-1].json()["elapsed"] < 2


def test_schemathesis(tmp_path: Path) -> None:
    """What the service's own OpenAPI says holds for whatever is sent: no 5xx but the 503."""
    with serve(*UVICORN, "handler.main:app", WORK_SECONDS="0.01") as server:
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
