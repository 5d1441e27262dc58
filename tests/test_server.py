"""One process; on a shutdown the gate closes immediately, and the server a moment later."""

import asyncio
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from starlette.responses import Response

from handler.server import lifespan, startup_error
from handler.server.one_process import bound_sockets, is_only_process
from handler.settings import Settings
from tests.support.server import ROOT


class Server:
    """The part of uvicorn's server that matters here: its method handles the signals."""

    def __init__(self) -> None:
        self.should_exit = False
        self.config = SimpleNamespace(http_protocol_class=None, timeout_graceful_shutdown=None)
        self.server_state = SimpleNamespace(tasks=set())
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
    """The first signal closes the gate immediately; the server begins to exit 0.25 s later.

    A second SIGTERM changes nothing.
    """
    closed = asyncio.Event()
    async with lifespan(closed.set, Settings(), Response()):
        signal.raise_signal(signum)
        await closed.wait()
        assert server.signals == []
        signal.raise_signal(signal.SIGTERM)
        assert server.signals == []
        await asyncio.sleep(0.24)
        assert not server.should_exit
        await asyncio.sleep(0.02)
        assert server.should_exit


async def test_second_interrupt(server: Server) -> None:
    """A second SIGINT cancels the running requests; a third is passed to the server."""
    running = asyncio.create_task(asyncio.Event().wait())
    server.server_state.tasks.add(running)
    async with lifespan(lambda: None, Settings(), Response()):
        for _ in range(2):
            signal.raise_signal(signal.SIGINT)
        with pytest.raises(asyncio.CancelledError):
            await running
        assert server.signals == []
        signal.raise_signal(signal.SIGINT)
        assert server.signals == [signal.SIGINT]


@pytest.mark.parametrize(("option", "seconds"), [(None, 13), (5, 5)])
async def test_time_limit(option: int | None, seconds: int, server: Server) -> None:
    """Work that hangs has a turn and ten seconds to end, or as long as the server's option says."""
    server.config.timeout_graceful_shutdown = option
    async with lifespan(lambda: None, Settings(work_seconds=3), Response()):
        assert server.config.timeout_graceful_shutdown == seconds


def test_startup_error(server: Server) -> None:
    """A server without enough file descriptors for its queue gets a reason of one line."""
    assert startup_error(Settings()) is None
    reason = startup_error(Settings(max_waiting=10**9))
    assert reason
    assert reason.startswith("handler: MAX_WAITING=1000000000: must be below ")


IS_ONLY = (
    "import sys; from handler.server.one_process import is_only_process; "
    "sys.exit(not is_only_process())"
)


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_UNIX])
def test_is_only_process(family: socket.AddressFamily, tmp_path: Path) -> None:
    """Of the processes that share a bound socket, one counts as the only one, until it exits."""
    with socket.socket(family) as shared, socket.create_server(("127.0.0.1", 0)) as own:
        shared.bind(("127.0.0.1", 0) if family == socket.AF_INET else str(tmp_path / "socket"))

        def is_only(*inherited: socket.socket) -> bool:
            descriptors = [one.fileno() for one in inherited]
            command = [sys.executable, "-c", IS_ONLY]
            return not subprocess.run(
                command, cwd=ROOT, pass_fds=descriptors, check=False
            ).returncode

        assert is_only(shared)
        assert is_only(shared)
        assert is_only_process()
        assert not is_only(shared)
        assert not is_only(own, shared)
        assert is_only()


def test_connections_are_not_shared_sockets() -> None:
    """Connections, datagram sockets and unbound sockets do not count as bound sockets."""
    with (
        socket.create_server(("127.0.0.1", 0)) as listening,
        socket.create_connection(listening.getsockname()) as client,
        listening.accept()[0] as accepted,
        socket.socket() as fresh,
        socket.socket(type=socket.SOCK_DGRAM) as datagrams,
    ):
        datagrams.bind(("127.0.0.1", 0))
        found = set(bound_sockets())
        assert listening.fileno() in found
        others = (client, accepted, fresh, datagrams)
        assert not found & {other.fileno() for other in others}


async def test_another_server() -> None:
    """If the server is not uvicorn, the signal handlers are left unchanged."""
    before = signal.getsignal(signal.SIGTERM)
    async with lifespan(pytest.fail, Settings(), Response()):
        assert signal.getsignal(signal.SIGTERM) is before
