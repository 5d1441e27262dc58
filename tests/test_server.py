"""One worker, or none; told to stop, the gate closes at once, and the server a moment later."""

import asyncio
import signal
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
from starlette.responses import Response

from handler.server import refuse_workers, serving


class Server:
    """What of uvicorn's server matters here: it handles the signals with a method of its own."""

    def __init__(self) -> None:
        self.should_exit = False
        self.config = SimpleNamespace(workers=1, reload=False, http_protocol_class=None)
        self.signals: list[int] = []

    def handle_exit(self, signum: int, frame: object) -> None:
        self.signals.append(signum)


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    before = {
        signum: signal.signal(signum, server.handle_exit)
        for signum in (signal.SIGINT, signal.SIGTERM)
    }
    yield server
    for signum, handler in before.items():
        signal.signal(signum, handler)


@pytest.mark.virtual_time
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
async def test_draining(signum: signal.Signals, server: Server) -> None:
    """A stop signal closes the gate at once; a quarter of a second later the server is to exit.

    SIGTERM again changes nothing; SIGINT again is the server's own to handle.
    """
    closed = asyncio.Event()
    async with serving(closed.set, 100, Response()):
        signal.raise_signal(signum)
        await closed.wait()
        assert server.signals == []
        signal.raise_signal(signal.SIGTERM)
        assert server.signals == []
        signal.raise_signal(signal.SIGINT)
        assert server.signals == [signal.SIGINT]
        await asyncio.sleep(0.24)
        assert not server.should_exit
        await asyncio.sleep(0.02)
        assert server.should_exit


@pytest.mark.parametrize("workers", [2, 8])
def test_several_workers(workers: int, server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    """One of several workers exits with one line, and a status that ends uvicorn's supervisor."""
    server.config.workers = workers
    with pytest.raises(SystemExit) as exit_:
        refuse_workers()
    assert exit_.value.code == 3
    assert capsys.readouterr().err == (
        f"handler: {workers} workers would work on {workers} calls at a time; "
        "start one: --workers 1, and no WEB_CONCURRENCY\n"
    )


def test_a_worker_alone(server: Server) -> None:
    """The one worker of a server goes on, and so does the one worker of `--reload`."""
    refuse_workers()
    server.config = SimpleNamespace(workers=2, reload=True)
    refuse_workers()


async def test_another_server() -> None:
    """Where it is not uvicorn that handles the signals, they are left alone."""
    refuse_workers()
    before = signal.getsignal(signal.SIGTERM)
    async with serving(pytest.fail, 100, Response()):
        assert signal.getsignal(signal.SIGTERM) is before
