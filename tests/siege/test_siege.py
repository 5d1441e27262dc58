"""The service attacked, at a size that fits: `tests.siege` does it in full."""

import asyncio
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import httpx
import pytest

from handler import app as module
from handler.app import create_app
from handler.arrival import arrival
from handler.settings import Settings
from tests.siege.attacks import crowd, flooded, stop_at_random
from tests.support.callers import Caller
from tests.support.doors import burst, calling
from tests.support.server import LIMIT, UVICORN, Server, serve
from tests.test_contract import assert_staircase

WORK_SECONDS = 0.1


@pytest.fixture(scope="module", params=["h11", "httptools"])
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    command = (*UVICORN, "--http", request.param, "handler.main:app")
    with serve(*command, WORK_SECONDS=str(WORK_SECONDS)) as server:
        yield server


async def test_a_crowd() -> None:
    """Half of a crowd hangs up at random; the rest are served as promised, and nothing is left."""
    seen = await crowd(200)
    assert seen["answered"] == seen["stayed"]
    assert (seen["short steps"], seen["most at once"], seen["in order"]) == (0, 1, True)
    assert (seen["tasks left"], seen["descriptors left"]) == (0, 0)
    assert seen["memory after the second"] < 1.1 * seen["memory after the first rush"]


@pytest.mark.parametrize("seed", range(2))
async def test_stopped_at_random(seed: int) -> None:
    """Told to stop in the middle of a burst, every caller gets a 200 or a 503; it exits 0."""
    outcomes = await stop_at_random(random.Random(seed))
    assert outcomes["200"] + outcomes["503"] == 30
    assert outcomes["exit 0"] == 1


async def test_a_flood() -> None:
    """While 200 call again once refused, a newcomer is told at once, and the turns go on."""
    seen = await flooded(200, 3)
    assert seen.newcomers
    assert max(seen.newcomers) < 0.5
    # Of the least, since the machine itself may stall during one.
    assert min(seen.turns) <= 1.1 * seen.turn_in_peace


async def half_a_request_line(server: Server) -> None:
    caller = await Caller.connect(server.url)
    caller.writer.write(b"GET /te")
    await caller.writer.drain()
    await caller.hang_up()


async def a_mebibyte_of_headers(server: Server) -> None:
    caller = await Caller.call(server.url, headers=f"X: {'x' * 2**20}\r\n")
    with suppress(ConnectionError, asyncio.IncompleteReadError):
        await caller.answer()


async def no_http_at_all(server: Server) -> None:
    caller = await Caller.connect(server.url)
    caller.writer.write(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n")
    assert (await caller.answer()).status == 400


async def a_reset_in_mid_answer(server: Server) -> None:
    caller = await Caller.call(server.url)
    assert await caller.reader.readexactly(9) == b"HTTP/1.1 "
    caller.writer.transport.abort()


async def a_reset_while_waiting(server: Server) -> None:
    caller = await Caller.call(server.url)
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
        attacks = asyncio.gather(*(attack(server) for attack in ATTACKS))
        answers, _ = await asyncio.gather(burst(client, 8), attacks)
    assert_staircase(answers, WORK_SECONDS)


async def test_pipelined(server: Server) -> None:
    """Requests sent ahead on one connection are answered in order, each in a turn of its own."""
    caller = await Caller.connect(server.url)
    caller.writer.write(3 * b"GET /test HTTP/1.1\r\nHost: test\r\n\r\n")
    answers = [await caller.read() for _ in range(3)]
    assert [answer.status for answer in answers] == [200] * 3
    assert all(b"elapsed" in answer.body for answer in answers)
    await caller.hang_up()


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

    client = calling(create_app(Settings(work_seconds=0.02), fail_at_random))
    answers = await burst(client, 50)
    assert Counter(answer.status_code for answer in answers) == {
        200: 50 - failures,
        500: failures,
    }
    assert failures
    assert_staircase([answer for answer in answers if answer.status_code == 200], 0.02)


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
