"""The service's entry points, behind one interface."""

import asyncio
import importlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from math import inf
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import httpx
import pytest
from starlette.types import ASGIApp

from handler import local_authorizer
from handler.app import create_app
from handler.runner import Work
from handler.settings import Settings
from tests.aws.artifact import environment, needs_artifact
from tests.support.assertions import simultaneous, spread
from tests.support.server import UVICORN, serve

WORK_SECONDS = 0.05
"""Seconds of a turn at the entry points where the requests' timestamps say when they arrived."""

ATTEMPTS = 20
"""Bursts until one is simultaneous; on a busy machine not each is."""

SERVER_WORK_SECONDS = 0.3
"""Seconds of a turn at the entry points where a client takes some time to arrive and to begin."""


@dataclass
class EntryPoint:
    """`burst(n)` sends `n` simultaneous `GET /test`; returns the responses in order of return."""

    burst: Callable[[int], list[httpx.Response]]
    work_seconds: float = WORK_SECONDS


async def burst(client: httpx.AsyncClient, n: int) -> list[httpx.Response]:
    """Send `n` simultaneous `GET /test`; return the responses in order of return."""
    pending = [client.get("/test") for _ in range(n)]
    return [await response for response in asyncio.as_completed(pending)]


async def simultaneous_burst(
    client: httpx.AsyncClient, n: int, seconds: float
) -> list[httpx.Response]:
    """Send bursts until the requests of one reached the server simultaneously."""
    for _ in range(ATTEMPTS):
        responses = await burst(client, n)
        if any(response.is_error for response in responses):
            return responses
        if spread(responses) < simultaneous(seconds):
            return responses
    raise AssertionError(f"of {ATTEMPTS} bursts none was simultaneous: the machine is too busy")


async def connect(client: httpx.AsyncClient, n: int) -> None:
    """Open `n` connections, so that a burst on them is not spread out by their handshakes."""
    await asyncio.gather(*(client.get("/nothing") for _ in range(n)))


def client_for(app: ASGIApp, root_path: str = "") -> httpx.AsyncClient:
    """Make a client for an app in this process; the app's errors are not raised in the client."""
    transport = httpx.ASGITransport(app, raise_app_exceptions=False, root_path=root_path)
    return httpx.AsyncClient(transport=transport, base_url="http://test")


def request_start() -> dict[str, str]:
    """Return the header in which a proxy records a request's arrival."""
    return {"X-Request-Start": f"t={time.time():.6f}"}


def rest_event(headers: dict[str, str]) -> dict[str, Any]:
    """Make a REST API's event for `GET /test`, with the fields that Mangum reads."""
    return {
        "resource": "/test",
        "path": "/test",
        "httpMethod": "GET",
        "headers": headers,
        "requestContext": {"resourcePath": "/test", "httpMethod": "GET", "path": "/test"},
    }


def http_api_event(headers: dict[str, str]) -> dict[str, Any]:
    """Make an HTTP API's event for `GET /test`, in payload format 2.0."""
    return {
        "version": "2.0",
        "routeKey": "GET /test",
        "rawPath": "/test",
        "rawQueryString": "",
        "headers": headers,
        "requestContext": {
            "http": {"method": "GET", "path": "/test", "sourceIp": "127.0.0.1"},
            "stage": "$default",
        },
        "isBase64Encoded": False,
    }


def gated(runner: asyncio.Runner, client: httpx.AsyncClient) -> EntryPoint:
    """An entry point at which requests are queued in the gate."""
    seconds = SERVER_WORK_SECONDS
    return EntryPoint(lambda n: runner.run(simultaneous_burst(client, n, seconds)), seconds)


@contextmanager
def asgi(work: Work) -> Iterator[EntryPoint]:
    """The app, in this process."""
    app = create_app(Settings(work_seconds=SERVER_WORK_SECONDS), work)
    with asyncio.Runner() as runner:
        yield gated(runner, client_for(app))


@contextmanager
def uvicorn(loop: str) -> Iterator[EntryPoint]:
    """A real server, on one of uvicorn's event loops."""
    command = (*UVICORN, "--loop", loop, "handler.main:app")
    with (
        serve(*command, WORK_SECONDS=str(SERVER_WORK_SECONDS)) as server,
        asyncio.Runner() as runner,
        _client(runner, server.url) as client,
    ):
        runner.run(connect(client, 8))
        yield gated(runner, client)


Event = dict[str, Any]
Invoke = Callable[[Event], httpx.Response]


def response(result: dict[str, Any]) -> httpx.Response:
    """Convert a function's result to an HTTP response."""
    headers = [*result["headers"].items()]
    for name, values in result.get("multiValueHeaders", {}).items():
        headers += [(name, value) for value in values]
    assert result["isBase64Encoded"] is False
    return httpx.Response(result["statusCode"], headers=headers, text=result["body"])


@contextmanager
def lambda_entry(work_seconds: float, path: str = "handler.main.handler") -> Iterator[Invoke]:
    """The handler that Lambda invokes, imported anew with the variables that the template sets."""
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    environ = {
        "AWS_LAMBDA_FUNCTION_NAME": "function",
        "WORK_SECONDS": str(work_seconds),
        "TRUST_REQUEST_START": "true",
    }
    with patch.dict(os.environ, environ), patch.dict(sys.modules):
        module, _, name = path.rpartition(".")
        sys.modules.pop(module, None)
        handler = getattr(importlib.import_module(module), name)

    try:
        yield lambda event: response(handler(event, SimpleNamespace()))
    finally:
        asyncio.set_event_loop(None)
        loop.close()


@contextmanager
def built(work_seconds: float) -> Iterator[Invoke]:
    """The handler in the artifact of `sam build`."""
    with environment(work_seconds) as invoke:
        yield lambda event: response(invoke(event).json())


def timestamped_by_gateway() -> Event:
    """Make an event as the waiting room sends it, with the gateway's timestamp of arrival."""
    return rest_event(request_start())


def timestamped_by_authorizer(headers: dict[str, str] | None = None) -> Event:
    """Make an event as SAM CLI sends it, with the timestamp of arrival of the local authorizer."""
    event = http_api_event(headers or {})
    event["requestContext"]["authorizer"] = {
        "lambda": local_authorizer.handler({}, None)["context"]
    }
    return event


@contextmanager
def function(
    environment: Callable[[float], AbstractContextManager[Invoke]], arrive: Callable[[], Event]
) -> Iterator[EntryPoint]:
    """A function: all requests of a burst arrive, then it is invoked for one after another."""
    with environment(WORK_SECONDS) as invoke:

        def invoke_each(n: int) -> list[httpx.Response]:
            took = inf
            while took >= simultaneous(WORK_SECONDS):
                began = time.time()
                events = [arrive() for _ in range(n)]
                took = time.time() - began
            return [invoke(event) for event in events]

        yield EntryPoint(invoke_each)


@contextmanager
def waiting_room() -> Iterator[EntryPoint]:
    """An emulated deployment, in which each request has an execution of its own."""
    from tests.aws import fake_aws  # which takes seconds

    with fake_aws.emulation(), fake_aws.environment(SERVER_WORK_SECONDS) as handle:
        endpoint = fake_aws.Endpoint(fake_aws.Function(handle))
        yield EntryPoint(endpoint.burst, SERVER_WORK_SECONDS)
        assert not endpoint.function.overlapped()
        assert not endpoint.logged


@contextmanager
def running(url: str) -> Iterator[EntryPoint]:
    """A running deployment, whose work takes as long as this process's settings say."""
    with asyncio.Runner() as runner, _client(runner, url.removesuffix("/test")) as client:
        yield EntryPoint(
            lambda n: runner.run(burst(client, n)),
            Settings.load().work_seconds,
        )


LOCAL = [
    pytest.param(partial(asgi, asyncio.sleep), id="asgi"),
    pytest.param(partial(asgi, time.sleep), id="asgi-thread"),
    pytest.param(partial(uvicorn, "asyncio"), id="uvicorn-asyncio"),
    pytest.param(partial(uvicorn, "uvloop"), id="uvicorn-uvloop"),
    pytest.param(partial(function, lambda_entry, timestamped_by_gateway), id="lambda"),
    pytest.param(partial(function, lambda_entry, timestamped_by_authorizer), id="lambda-sam-local"),
    pytest.param(
        partial(function, built, timestamped_by_gateway), id="artifact", marks=needs_artifact
    ),
    pytest.param(
        partial(function, built, timestamped_by_authorizer),
        id="artifact-sam-local",
        marks=needs_artifact,
    ),
    pytest.param(waiting_room, id="waiting-room"),
]


@contextmanager
def _client(runner: asyncio.Runner, url: str) -> Iterator[httpx.AsyncClient]:
    client = httpx.AsyncClient(base_url=url, timeout=60)
    yield client
    runner.run(client.aclose())
