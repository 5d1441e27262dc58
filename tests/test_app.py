"""The app: its one route, in this process."""

import asyncio
import logging
import re
import time
from contextlib import suppress
from datetime import datetime
from itertools import count
from pathlib import Path
from unittest.mock import AsyncMock

import httpx
import pytest
from fastapi import FastAPI, HTTPException, Request, Response
from starlette.middleware.base import RequestResponseEndpoint
from starlette.types import Message, Receive, Scope, Send

import handler.server
from handler.app import create_app
from handler.runner import Work
from handler.settings import Settings
from tests.support.entry_points import burst, client_for, request_start
from tests.support.virtual_time import app_on_virtual_time

WORK_SECONDS = 0.1
SETTINGS = Settings(work_seconds=WORK_SECONDS, max_waiting=4)
SCOPE = {"type": "http", "method": "GET", "path": "/test", "query_string": b"", "headers": []}


@pytest.fixture
def app() -> FastAPI:
    return create_app(SETTINGS, asyncio.sleep)


@pytest.fixture
def client(app: FastAPI) -> httpx.AsyncClient:
    return client_for(app)


async def test_full(client: httpx.AsyncClient) -> None:
    """With 4 slots in the queue, 5 of 20 clients are served, and 15 immediately get a 503."""
    responses = await burst(client, 20)
    assert [response.status_code for response in responses] == [503] * 15 + [200] * 5
    for response in responses[:15]:
        assert response.headers["retry-after"] == "1"
        assert response.headers["cache-control"] == "no-store"
        assert response.json() == {"detail": "The queue is full (4 waiting); try again in 1 s."}


@pytest.mark.virtual_time
async def test_late(monkeypatch: pytest.MonkeyPatch) -> None:
    """A request whose turn does not begin within `MAX_WAIT_SECONDS` gets a 503 at that time."""
    app_on_virtual_time(monkeypatch)
    settings = Settings(work_seconds=WORK_SECONDS, max_wait_seconds=2.5 * WORK_SECONDS)
    responses = await burst(client_for(create_app(settings, asyncio.sleep)), 10)
    assert [response.status_code for response in responses] == [200] * 2 + [503] * 7 + [200]
    for response in responses:
        if response.status_code == 503:
            assert response.headers["retry-after"] == "1"
            detail = "The request waited for more than 0.25 s; try again in 1 s."
            assert response.json() == {"detail": detail}


@pytest.mark.parametrize("root_path", ["", "/api"])
async def test_rejected_before_anything_is_made(
    root_path: str, app: FastAPI, client: httpx.AsyncClient
) -> None:
    """A rejection makes no task and reads nothing: its cost delays every request of an overload."""
    served = [asyncio.create_task(client.get("/test")) for _ in range(5)]
    await asyncio.sleep(0)
    before = asyncio.all_tasks()
    receive, send = AsyncMock(), AsyncMock()
    scope = SCOPE | {"root_path": root_path, "path": f"{root_path}/test"}
    with pytest.raises(StopIteration):
        app(scope, receive, send).send(None)
    assert send.await_args_list[0].args[0]["status"] == 503
    assert asyncio.all_tasks() == before
    assert (await client.post("/test")).status_code == 405
    receive.assert_not_awaited()
    await asyncio.gather(*served)


async def test_full_under_a_root_path(app: FastAPI) -> None:
    """Requests under a root path, as with uvicorn's --root-path, are rejected just the same."""
    client = client_for(app, root_path="/api")
    served = [asyncio.create_task(client.get("/api/test")) for _ in range(5)]
    await asyncio.sleep(0)
    rejected = await client.get("/api/test")
    assert rejected.status_code == 503
    assert rejected.headers["retry-after"] == "1"
    assert rejected.json() == {"detail": "The queue is full (4 waiting); try again in 1 s."}
    assert [(await response).status_code for response in served] == [200] * 5


@pytest.mark.parametrize(
    ("work_seconds", "retry_after"), [(0.01, "1"), (1.0, "1"), (2.5, "3"), (3.0, "3")]
)
async def test_retry_after(work_seconds: float, retry_after: str) -> None:
    """`Retry-After` is a turn, in whole seconds: by then a slot has become free."""
    client = client_for(
        create_app(Settings(work_seconds=work_seconds, max_waiting=0), asyncio.sleep)
    )
    served = asyncio.create_task(client.get("/test"))
    await asyncio.sleep(0)
    assert (await client.get("/test")).headers["retry-after"] == retry_after
    served.cancel()


async def test_work() -> None:
    """Each request's turn does the work once, with `WORK_SECONDS` as its argument."""
    work = AsyncMock()
    responses = await burst(client_for(create_app(SETTINGS, work)), 3)
    assert [response.status_code for response in responses] == [200] * 3
    assert [call.args for call in work.await_args_list] == [(WORK_SECONDS,)] * 3


@pytest.mark.parametrize("sleep", [asyncio.sleep, time.sleep])
async def test_failure(sleep: Work) -> None:
    """When the work fails, its client gets a 500 that reveals nothing, and the next is served."""
    runs = count()

    def fail_first(seconds: float) -> object:
        if next(runs) == 0:
            raise ZeroDivisionError("the secret reason")
        return sleep(seconds)

    failed, served = await burst(client_for(create_app(SETTINGS, fail_first)), 2)
    assert failed.status_code == 500
    assert failed.json() == {"detail": "Internal Server Error"}
    assert served.status_code == 200


@pytest.mark.parametrize("kind", ["def", "async def"])
@pytest.mark.parametrize(
    "error",
    [SystemExit(1), KeyboardInterrupt(), asyncio.CancelledError(), ExceptionGroup("", [OSError()])],
    ids=lambda error: type(error).__name__,
)
@pytest.mark.parametrize("middleware", [False, True])
async def test_failure_of_any_class(error: BaseException, kind: str, middleware: bool) -> None:
    """Whatever the work raises, the response is the JSON 500, and the next turn begins."""
    errors: list[BaseException | None] = [error, None]

    def blocking(seconds: float) -> None:
        if failure := errors.pop(0):
            raise failure

    async def awaited(seconds: float) -> None:
        blocking(seconds)

    app = create_app(SETTINGS, blocking if kind == "def" else awaited)
    if middleware:

        @app.middleware("http")
        async def pass_on(request: Request, call_next: RequestResponseEndpoint) -> Response:
            return await call_next(request)

    failed, served = await burst(client_for(app), 2)
    assert failed.status_code == 500
    assert failed.json() == {"detail": "Internal Server Error"}
    assert served.status_code == 200


def test_test_client(app: FastAPI) -> None:
    """FastAPI's own test client works, in a test that is no coroutine."""
    from fastapi.testclient import TestClient

    assert list(TestClient(app).get("/test").json()) == ["elapsed"]


async def test_http_exception() -> None:
    """An `HTTPException` of the work's sets the response."""

    def work(seconds: float) -> None:
        raise HTTPException(402, "No licence", {"X-Licence": "none"})

    response = await client_for(create_app(SETTINGS, work)).get("/test")
    assert (response.status_code, response.json()) == (402, {"detail": "No licence"})
    assert response.headers["x-licence"] == "none"


@pytest.mark.parametrize(
    ("value", "rest"),
    [
        (None, {}),
        (0, {"result": 0}),
        ("$x #if", {"result": "$x #if"}),
        ({"a": [1, None]}, {"result": {"a": [1, None]}}),
        (datetime(2026, 11, 27), {"result": "2026-11-27T00:00:00"}),
        (Path("/tmp/x"), {"result": "/tmp/x"}),
    ],
)
async def test_result(value: object, rest: dict[str, object]) -> None:
    """What the work returns is the `result`, as JSON; there is none if it returns nothing."""
    response = await client_for(create_app(SETTINGS, lambda seconds: value)).get("/test")
    body = response.json()
    assert body.pop("elapsed") >= WORK_SECONDS
    assert body == rest


async def test_result_that_is_no_json() -> None:
    """A result that cannot be sent is a failure like any other."""
    app = create_app(SETTINGS, lambda seconds: object())
    responses = await burst(client_for(app), 2)
    assert [response.status_code for response in responses] == [500] * 2
    assert responses[0].json() == {"detail": "Internal Server Error"}


async def test_a_limit_on_receiving(app: FastAPI, client: httpx.AsyncClient) -> None:
    """An error of a middleware's in receiving is no disconnect: the request is served."""
    served = asyncio.create_task(client.get("/test"))
    await asyncio.sleep(0)
    send = AsyncMock()
    await app(dict(SCOPE), AsyncMock(side_effect=TimeoutError), send)
    assert send.await_args_list[0].args[0]["status"] == 200
    assert served.done()


async def test_a_time_limit_around_the_app() -> None:
    """If a middleware cancels a request, its `def` work goes on, and the next waits for it."""
    running = 0
    most = 0

    def work(seconds: float) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        time.sleep(2 * seconds)
        running -= 1

    app = create_app(SETTINGS, work)

    async def limited(scope: Scope, receive: Receive, send: Send) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(WORK_SECONDS):
                await app(scope, receive, send)

    cancelled = [limited(dict(SCOPE), connected, AsyncMock()) for _ in range(4)]
    await asyncio.gather(*cancelled)
    assert (await client_for(app).get("/test")).status_code == 200
    assert (running, most) == (0, 1)


async def test_a_route_of_ones_own(app: FastAPI, client: httpx.AsyncClient) -> None:
    """Another route is served while the queue is full."""

    @app.get("/health")
    def health() -> str:
        return "well"

    served = [asyncio.create_task(client.get("/test")) for _ in range(5)]
    await asyncio.sleep(0)
    assert (await client.get("/test")).status_code == 503
    assert (await client.get("/health")).json() == "well"
    await asyncio.gather(*served)


async def test_rejections_share_nothing(app: FastAPI, client: httpx.AsyncClient) -> None:
    """What a middleware adds to a rejection is not in the next one."""

    async def varying(scope: Scope, receive: Receive, send: Send) -> None:
        async def add(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"].append((b"vary", b"origin"))
            await send(message)

        await app(scope, receive, add)

    served = [asyncio.create_task(client.get("/test")) for _ in range(5)]
    await asyncio.sleep(0)
    for _ in range(2):
        rejected = await client_for(varying).get("/test")
        assert rejected.headers.get_list("vary") == ["origin"]
    await asyncio.gather(*served)


@pytest.mark.parametrize("listening", [False, True])
async def test_no_lifespan(
    listening: bool, app: FastAPI, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Served without its lifespan, the app warns once; in a test without a server, it doesn't."""
    addresses = {("127.0.0.1", 8000)} if listening else set()
    monkeypatch.setattr(handler.server, "inherited_addresses", lambda: addresses)
    outer = FastAPI()
    outer.mount("/api", app)
    responses = await burst(client_for(outer), 2)
    assert [response.status_code for response in responses] == [404] * 2
    client = client_for(outer)
    assert [(await client.get("/api/test")).status_code for _ in range(2)] == [200] * 2
    assert caplog.text.count("The app's lifespan was not run") == listening


async def test_no_lifespan_and_no_sockets(
    app: FastAPI, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where it cannot be told whether there is a server, the app warns."""

    def fail() -> None:
        raise PermissionError

    monkeypatch.setattr(handler.server, "inherited_addresses", fail)
    assert (await client_for(app).get("/test")).status_code == 200
    assert caplog.text.count("The app's lifespan was not run") == 1


held: list[object] = []


async def connected() -> Message:
    """Be a client that does not disconnect."""
    never: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
    held.append(never)  # or the garbage collector ends what waits for it
    return await never


async def test_no_task_is_left(app: FastAPI) -> None:
    """When a request is done, so is what watched its client, whatever the server tells it."""
    await app(dict(SCOPE), connected, AsyncMock())
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == {asyncio.current_task()}


@pytest.mark.parametrize("begun", [False, True])
async def test_disconnect_is_logged(begun: bool, caplog: pytest.LogCaptureFixture) -> None:
    """A request that ends without a response is logged in one line; the others are not."""
    client = client_for(app := create_app(SETTINGS, asyncio.sleep))
    served = asyncio.create_task(client.get("/test"))
    await asyncio.sleep(WORK_SECONDS / 2)
    if begun:
        await served
    receive = AsyncMock(return_value={"type": "http.disconnect"})
    with caplog.at_level(logging.INFO, "uvicorn.error"):
        await app(SCOPE | {"client": ("1.2.3.4", 5)}, receive, AsyncMock())
        await served
    [line] = [record.getMessage() for record in caplog.records]
    when = "while its work was running" if begun else r"after \d\.\d{3} s in the queue"
    assert re.fullmatch(rf'1\.2\.3\.4:5 - "GET /test" client disconnected {when}', line)


async def test_disconnect(app: FastAPI, client: httpx.AsyncClient) -> None:
    """If a client disconnects while it waits, its request ends immediately, with nginx's 499."""
    served = asyncio.create_task(client.get("/test"))
    await asyncio.sleep(0)
    send = AsyncMock()
    await app(dict(SCOPE), AsyncMock(return_value={"type": "http.disconnect"}), send)
    assert send.await_args_list[0].args[0]["status"] == 499
    assert not served.done()
    assert (await served).status_code == 200


@pytest.mark.parametrize("trusted", [True, False])
async def test_request_start(trusted: bool) -> None:
    """If `X-Request-Start` is trusted, `elapsed` begins there; otherwise it is ignored."""
    client = client_for(
        create_app(Settings(work_seconds=0.01, trust_request_start=trusted), asyncio.sleep)
    )
    timestamp = float(request_start()["X-Request-Start"].removeprefix("t="))
    response = await client.get("/test", headers={"X-Request-Start": f"t={timestamp - 100}"})
    assert (response.json()["elapsed"] > 100) is trusted


async def test_one_route(client: httpx.AsyncClient, app: FastAPI) -> None:
    """There is one route; other paths and methods get the usual 404 and 405."""
    assert list(app.openapi()["paths"]) == ["/test"]
    assert list(app.openapi()["paths"]["/test"]) == ["get"]
    missing = await client.get("/health")
    assert (missing.status_code, missing.json()) == (404, {"detail": "Not Found"})
    posted = await client.post("/test")
    assert (posted.status_code, posted.headers["allow"]) == (405, "GET")


async def test_openapi(client: httpx.AsyncClient) -> None:
    """OpenAPI describes the 200, the 500 and the 503, with their bodies and headers."""
    document = (await client.get("/openapi.json")).json()
    operation = document["paths"]["/test"]["get"]
    assert operation["operationId"] == "run_work"
    schemas = {
        status: response["content"]["application/json"]["schema"]["$ref"].rpartition("/")[2]
        for status, response in operation["responses"].items()
    }
    assert schemas == {"200": "Result", "500": "Error", "503": "Error"}
    properties = {
        name: schema["properties"] for name, schema in document["components"]["schemas"].items()
    }
    assert properties["Result"]["elapsed"]["examples"] == [6.001]
    assert list(properties["Result"]) == ["elapsed", "result"]
    assert list(properties["Error"]) == ["detail"]
    assert list(operation["responses"]["200"]["headers"]) == ["Server-Timing"]
    assert list(operation["responses"]["503"]["headers"]) == ["Retry-After"]
    assert (await client.get("/docs")).status_code == 200
