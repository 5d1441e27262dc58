"""The service, started as its users start it, in a process of its own."""

import asyncio
import json
import signal
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from tests.support.clients import Client, fence, until
from tests.support.entry_points import (
    burst,
    http_api_event,
    lambda_entry,
    rest_event,
    timestamped_by_authorizer,
)
from tests.support.server import LIMIT, PYTHON_M, SLEEPING, UVICORN, Server, run, serve

WORK_SECONDS = 0.15
MAX_WAITING = 5


@pytest.fixture(scope="module", params=list(SLEEPING.values()), ids=list(SLEEPING))
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    settings = {"WORK_SECONDS": str(WORK_SECONDS), "MAX_WAITING": str(MAX_WAITING), "PORT": "0"}
    with serve(*request.param, **settings) as server:
        yield server


async def test_disconnect_while_waiting(server: Server) -> None:
    """Clients that disconnect while they wait free their slots immediately, and no turn is lost."""
    served = await Client.get(server.url)
    await fence(server.url)
    gone = [await Client.get(server.url) for _ in range(MAX_WAITING)]
    await fence(server.url)
    for client in gone:
        await client.disconnect()
    await fence(server.url)
    async with httpx.AsyncClient(base_url=server.url, timeout=LIMIT) as others:
        responses = await burst(others, MAX_WAITING)
    assert [response.status_code for response in responses] == [200] * MAX_WAITING
    [first, _] = json.loads((await served.response()).body)["result"]
    begun = [response.json()["result"][0] for response in responses]
    assert begun == [first + n for n in range(1, MAX_WAITING + 1)]


async def test_disconnect_inside(server: Server) -> None:
    """Work that has begun is finished even if its client disconnects; the next waits for it."""
    gone = await Client.get(server.url)
    await fence(server.url)
    await gone.disconnect()
    after = await Client.get(server.url)
    [begun, ended] = json.loads((await after.response()).body)["result"]
    assert begun == ended > 0


@pytest.mark.parametrize(
    ("command", "signum"),
    [
        ("uvloop", signal.SIGTERM),
        ("python -m", signal.SIGTERM),
        ("python -m", signal.SIGINT),
        ("work in a thread", signal.SIGTERM),
    ],
)
async def test_shutdown(command: str, signum: signal.Signals) -> None:
    """At a shutdown the running request gets its 200, the waiting ones a 503; exit status 0."""
    with serve(*SLEEPING[command], WORK_SECONDS="0.5", PORT="0") as server:
        clients = [await Client.get(server.url)]
        await fence(server.url)
        clients += [await Client.get(server.url) for _ in range(5)]
        await fence(server.url)
        server.process.send_signal(signum)
        responses = [
            await response
            for response in asyncio.as_completed([client.response() for client in clients])
        ]
        assert [response.status for response in responses] == [503] * 5 + [200]
        for rejected in responses[:-1]:
            assert rejected.headers["retry-after"] == "1"
            assert rejected.headers["connection"] == "close"
            assert rejected.body == b'{"detail":"The service is shutting down; try again in 1 s."}'
        assert server.process.wait(LIMIT) == 0


@pytest.mark.parametrize("command", SLEEPING.values(), ids=SLEEPING)
def test_bad_setting(command: tuple[str, ...]) -> None:
    """A bad setting is rejected with one line and exit status 2, however the service is started."""
    done = run(*command, WORK_SECONDS="nan")
    assert done.returncode == 2
    assert done.stdout == (
        "handler: WORK_SECONDS='nan': must be a finite number of seconds above 0\n"
    )


@pytest.mark.parametrize(
    ("app", "how"), [("hanging", "SIGINT twice"), ("hanging_in_a_thread", "SIGTERM")]
)
async def test_shutdown_when_the_work_hangs(app: str, how: str) -> None:
    """Work that hangs at a shutdown is cancelled, its client gets a 503, and the process exits."""
    limit = "1" if how == "SIGTERM" else str(round(2 * LIMIT))
    command = (*UVICORN, "--timeout-graceful-shutdown", limit, f"tests.support.apps:{app}")
    with serve(*command) as server:
        client = await Client.get(server.url)
        await fence(server.url)
        for signum in [signal.SIGTERM] if how == "SIGTERM" else [signal.SIGINT] * 2:
            server.process.send_signal(signum)
            await until(lambda: any("Shutting down" in line for line in server.log))
        response = await client.response()
        assert response.status == 503
        assert response.body == b'{"detail":"The service is shutting down; try again in 3 s."}'
        assert server.process.wait(LIMIT) == 0
    assert not [line for line in server.log if "Traceback" in line]


def gunicorn(*options: str) -> tuple[str, ...]:
    return (sys.executable, "-m", "gunicorn", "--bind", "127.0.0.1:0", "-w", "2", *options)


SEVERAL = [
    (*UVICORN, "--workers", "2", "tests.support.apps:in_a_thread"),
    gunicorn("-k", "asgi", "--preload", "handler.main:app"),
    gunicorn("-k", "uvicorn_worker.UvicornWorker", "handler.main:app"),
    (sys.executable, "-m", "hypercorn", "-b", "127.0.0.1:0", "-w", "2", "handler.main:app"),
]


def test_several_processes() -> None:
    """A second process on a socket does not start, and says so in one line, under any server."""
    with ThreadPoolExecutor(len(SEVERAL)) as pool:
        outputs = [done.stdout for done in pool.map(lambda command: run(*command), SEVERAL)]
    message = "handler: another process already serves 127.0.0.1:"
    assert [output.count(message) for output in outputs] == [1] * len(SEVERAL), outputs


def test_python_m_is_one_worker() -> None:
    """`python -m handler` starts one worker, whatever WEB_CONCURRENCY says."""
    with serve(*PYTHON_M, PORT="0", WEB_CONCURRENCY="2") as server:
        assert server.stop() == 0


def test_no_warning() -> None:
    """The server, and the Lambda handler, which has no loop, run with warnings as errors."""
    with serve(sys.executable, *("-W", "error", "-X", "dev", "-m", "handler"), PORT="0") as server:
        assert server.stop() == 0
    invoke = "from handler.main import handler; print(handler({event!r}, None)['statusCode'])"
    done = run(
        *(sys.executable, "-W", "error", "-c", invoke.format(event=rest_event({}))),
        WORK_SECONDS="0.01",
    )
    assert done.stdout == "200\n"


def test_reload() -> None:
    """`--reload`, which serves from a child process, still works."""
    retrying = httpx.HTTPTransport(retries=6)  # the socket is bound before the child listens
    with (
        serve(*UVICORN, "--reload", "tests.support.apps:sleeping", WORK_SECONDS="0.01") as server,
        httpx.Client(base_url=server.url, transport=retrying) as client,
    ):
        assert client.get("/test").status_code == 200
        assert server.stop() == 0


def test_the_authorizer_takes_precedence_over_the_client() -> None:
    """At the local entry point the authorizer's timestamp takes precedence over the client's."""
    sent = {"X-Request-Start": f"t={time.time() - 100}"}
    with lambda_entry(work_seconds=0.01) as invoke:
        assert invoke(timestamped_by_authorizer(sent)).json()["elapsed"] < 100


def test_another_authorizer() -> None:
    """An event of another authorizer is handled like any other."""
    event = http_api_event({"X-Request-Start": f"t={time.time() - 100}"})
    event["requestContext"]["authorizer"] = {"lambda": None}
    with lambda_entry(work_seconds=0.01) as invoke:
        assert invoke(event).json()["elapsed"] > 100
