"""The server keeps the promises, or does not start."""

import asyncio
import signal
import sys

import pytest
import uvicorn
from starlette.responses import Response

import handler.server
from handler.server import startup_error
from handler.settings import InvalidSetting, Settings
from tests.support.clients import Client, until
from tests.support.service import Service, serving

pytestmark = pytest.mark.virtual_time


def now() -> float:
    return asyncio.get_running_loop().time()


async def running(service: Service) -> Client:
    """Send a request that is answered once `may_end` is set."""
    service.may_end.clear()
    client = await Client.get(service.url)
    await until(lambda: service.requests)
    return client


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
async def test_draining(signum: signal.Signals) -> None:
    """The first signal closes the gate immediately; the server shuts down 0.25 s later.

    A second SIGTERM changes nothing.
    """
    async with serving() as service:
        client = await running(service)
        for number in (signum, signal.SIGTERM):
            signal.raise_signal(number)
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            assert service.closed
        began = now()
        late = await Client.get(service.url, "/nothing")
        assert (await late.response()).status == 404
        assert now() - began < 0.25
        await asyncio.sleep(0.5)
        with pytest.raises(ConnectionError):
            await Client.connect(service.url)
        service.may_end.set()
        assert (await client.response()).status == 200


async def test_another_end() -> None:
    """When uvicorn ends by itself, the gate closes before it shuts down, too."""
    async with serving(limit_max_requests=1) as service:
        assert (await (await Client.get(service.url)).response()).status == 200
        await until(lambda: service.closed)


async def test_second_interrupt() -> None:
    """A second SIGINT cancels the running requests; a third is passed to uvicorn."""
    async with serving() as service:
        client = await running(service)
        [task] = service.server.server_state.tasks
        for _ in range(2):
            signal.raise_signal(signal.SIGINT)
        await asyncio.wait([task])
        assert not service.server.force_exit
        await client.disconnect()
        signal.raise_signal(signal.SIGINT)
        assert service.server.force_exit
        service.server._captured_signals.clear()


@pytest.mark.parametrize(("option", "seconds"), [(None, 13), (5, 5)])
async def test_time_limit(option: int | None, seconds: int) -> None:
    """Work that hangs has a turn and ten seconds to end, or as long as uvicorn's option says."""
    async with serving(timeout_graceful_shutdown=option) as service:
        client = await running(service)
        [task] = service.server.server_state.tasks
        began = now()
        signal.raise_signal(signal.SIGTERM)
        await asyncio.wait([task])
        assert seconds < now() - began < seconds + 1.5
        await client.disconnect()


async def reason(http: str = "httptools") -> str | None:
    """Return why a uvicorn server that is starting should not start."""
    server = uvicorn.Server(uvicorn.Config(Response(), port=0, http=http, log_config=None))
    server.config.load()
    with server.capture_signals():
        return await startup_error(Settings(), pytest.fail, Response())


@pytest.mark.parametrize(
    "guard", ["uvicorn_server", "claim_addresses", "limit_connections", "Draining"]
)
@pytest.mark.parametrize(
    ("error", "message"),
    [
        (InvalidSetting("X=1: must be 2"), "handler: X=1: must be 2"),
        (PermissionError(13, "denied"), "handler: cannot tell whether requests would be "),
        (OSError(24, "Too many open files"), "handler: cannot tell whether requests would be "),
        (ZeroDivisionError("what?"), "handler: cannot tell whether requests would be "),
    ],
)
async def test_a_guard_that_fails(
    guard: str, error: Exception, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A check that cannot be made counts as failed: the server does not start, and says why."""

    def fail(*args: object) -> None:
        raise error

    monkeypatch.setattr(handler.server, guard, fail)
    line = await reason()
    assert line
    assert line.startswith(message)
    assert "\n" not in line


async def test_another_parser() -> None:
    """uvicorn's other HTTP parsers have no limits: with them the server does not start."""
    assert await reason("httptools") is None
    line = await reason("h11")
    assert line
    assert line.startswith("handler: --http h11: only httptools lets ")


async def test_a_uvicorn_that_is_not_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """On uvicorn's command line there is a server: if it is not found, it does not start."""
    monkeypatch.setattr(sys, "argv", ["/venv/bin/uvicorn"])
    monkeypatch.setattr(handler.server, "uvicorn_server", lambda: None)
    line = await reason()
    assert line
    assert line.endswith('LookupError("uvicorn\'s server was not found")')


async def test_another_server() -> None:
    """A server that is not uvicorn keeps its signal handlers."""
    before = signal.getsignal(signal.SIGTERM)
    assert await startup_error(Settings(), pytest.fail, Response()) is None
    assert signal.getsignal(signal.SIGTERM) is before
