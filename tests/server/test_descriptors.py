"""As many connections as there are file descriptors, whatever clients or the work do with them."""

import asyncio
import json
import os
import resource
import socket
import struct
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

import handler.server
from handler.server.descriptors import IDLE_SECONDS, LINGER_SECONDS, connection_limit
from handler.settings import InvalidSetting
from tests.support.clients import Client, until
from tests.support.server import LIMIT, PYTHON_M, SLEEPING, UVICORN, run, serve
from tests.support.service import Service, serving

CONNECTIONS = 5


@pytest.fixture
async def service(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Service]:
    """A service of `CONNECTIONS` connections, and two that linger."""
    monkeypatch.setattr(handler.server, "connection_limit", lambda max_waiting: CONNECTIONS)
    monkeypatch.setattr("handler.server.descriptors.reserve", lambda limit: 8)
    async with serving() as service:
        yield service


async def rejected(client: Client) -> None:
    """Assert that the client has a 503, and that its connection is closed."""
    response = await client.read()
    assert (response.status, response.headers["connection"]) == (503, "close")
    assert await client.reader.read() == b""
    await client.disconnect()


@pytest.mark.virtual_time
async def test_idle_connections_make_room(service: Service) -> None:
    """At the limit the connection that has been idle for longest makes room."""
    kept = await Client.get(service.url, "/nothing")
    assert (await kept.read()).status == 404
    idle = [await Client.connect(service.url) for _ in range(CONNECTIONS - 1)]
    await service.connections(CONNECTIONS)
    await rejected(await Client.get(service.url))
    await asyncio.sleep(IDLE_SECONDS)
    assert (await (await Client.get(service.url)).response()).status == 200
    assert await kept.reader.read() == b""
    for client in (kept, *idle):
        await client.disconnect()


@pytest.mark.virtual_time
async def test_rejections(service: Service, caplog: pytest.LogCaptureFixture) -> None:
    """Clients beyond the limit get a 503, and time to read it; the log has one line."""
    service.may_end.clear()
    served = [await Client.get(service.url) for _ in range(CONNECTIONS)]
    await until(lambda: service.requests == CONNECTIONS)
    silent = [await Client.connect(service.url) for _ in range(20)]
    for client in silent[:2]:
        await asyncio.sleep(LINGER_SECONDS / 10)
        client.writer.write(b"GET /test HTTP/1.1\r\n\r\n")
        await asyncio.sleep(LINGER_SECONDS / 10)
        # Not reset: some systems then forget what they have received.
        sock = client.writer.get_extra_info("socket")
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
    for client in silent:
        await rejected(client)
    lingering = await Client.connect(service.url)
    began = asyncio.get_running_loop().time()
    await rejected(lingering)
    await asyncio.sleep(LINGER_SECONDS)
    service.may_end.set()
    assert [(await client.response()).status for client in served] == [200] * CONNECTIONS
    assert asyncio.get_running_loop().time() > began
    assert caplog.text.count("Too many connections: rejecting those beyond 5 (") == 1


@pytest.mark.virtual_time
async def test_a_few_at_once(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of clients that come at once some are accepted in an iteration, and in the end all."""
    monkeypatch.setattr("handler.server.descriptors.ACCEPTED_AT_ONCE", 2)
    clients = connect(service, CONNECTIONS)
    await service.connections(CONNECTIONS)
    for client in clients:
        client.close()


@pytest.mark.virtual_time
async def test_clients_that_disconnect_at_once(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Clients that are gone before they are accepted, or rejected, disturb nobody."""
    service.may_end.clear()
    served = [await Client.get(service.url) for _ in range(CONNECTIONS)]
    await until(lambda: service.requests == CONNECTIONS)
    for client in connect(service, 3):
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()
    await rejected(await Client.get(service.url))
    service.may_end.set()
    assert [(await client.response()).status for client in served] == [200] * CONNECTIONS

    async def fail(*args: object, **kwargs: object) -> None:
        raise ConnectionResetError

    with monkeypatch.context() as patched:
        patched.setattr(asyncio.get_running_loop(), "connect_accepted_socket", fail)
        gone = await Client.get(service.url)
        assert await gone.reader.read() == b""
        await gone.disconnect()
    assert (await (await Client.get(service.url)).response()).status == 200


@contextmanager
def no_descriptor_left() -> Iterator[list[int]]:
    """Leave no file descriptor to this process; yields those that fill the gaps."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.open(os.devnull, os.O_RDONLY)
    os.close(lowest)
    highest = max(int(name) for name in os.listdir("/dev/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 1, before[1]))
    taken: list[int] = []
    try:
        with suppress(OSError):
            while True:
                taken.append(os.open(os.devnull, os.O_RDONLY))
        yield taken
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
        for descriptor in taken:
            os.close(descriptor)


def connect(service: Service, n: int) -> list[socket.socket]:
    """Connect `n` clients, without letting the server accept them."""
    address = ("127.0.0.1", httpx.URL(service.url).port)
    clients = [socket.create_connection(address) for _ in range(n)]
    for client in clients:
        client.setblocking(False)
        client.send(b"GET /test HTTP/1.1\r\n\r\n")
    return clients


async def first_bytes(client: socket.socket) -> bytes:
    """Return the beginning of the response that a client gets."""
    async with asyncio.timeout(LIMIT):
        return await asyncio.get_running_loop().sock_recv(client, 13)


@pytest.mark.virtual_time
async def test_no_descriptor_left(service: Service) -> None:
    """If the work has taken every descriptor, clients are rejected; later ones are served."""
    clients = connect(service, 3)
    with no_descriptor_left():
        for client in clients:
            assert await first_bytes(client) == b"HTTP/1.1 503 "
            client.close()
    assert (await (await Client.get(service.url)).response()).status == 200


@pytest.mark.virtual_time
async def test_no_descriptor_left_at_all(service: Service) -> None:
    """If the work has taken the spare one, too, clients wait until it has closed something."""
    [client] = connect(service, 1)
    acceptor: Any = service.server.servers[-1]
    with no_descriptor_left() as taken:
        os.close(acceptor._spare)
        taken.append(os.open(os.devnull, os.O_RDONLY))
        acceptor._spare = -1
        await asyncio.sleep(1)
    assert await first_bytes(client) == b"HTTP/1.1 200 "
    client.close()


@pytest.mark.virtual_time
async def test_shutdown_without_descriptors() -> None:
    """A server that pauses when it shuts down does not listen again."""
    async with serving() as service:
        [client] = connect(service, 1)
        acceptor: Any = service.server.servers[-1]
        [listener] = acceptor.sockets
        client.close()
    acceptor._listen(listener)


def limited(soft: int, hard: int, *command: str) -> tuple[str, ...]:
    """Make `command` run under limits on open files."""
    return ("sh", "-c", f'ulimit -S -n {soft} && ulimit -H -n {hard} && exec "$@"', "sh", *command)


@pytest.mark.parametrize("command", [SLEEPING["python -m"], SLEEPING["uvloop"]])
async def test_crowd_at_a_low_limit(command: tuple[str, ...]) -> None:
    """At the limit on open files, all further clients get a 503, and the log has one line."""
    settings = {"WORK_SECONDS": "0.5", "MAX_WAITING": "100", "PORT": "0"}
    with serve(*limited(100, 124, *command), **settings) as server:
        idle = [await Client.connect(server.url) for _ in range(3)]
        waiting = [await Client.get(server.url) for _ in range(101)]
        crowd = [await Client.get(server.url) for _ in range(100)]
        responses = [await client.read() for client in crowd]
        assert {response.status for response in responses} == {503}
        assert {response.headers["retry-after"] for response in responses} == {"1"}
        details = {json.loads(response.body)["detail"] for response in responses}
        assert "Too many connections; try again in 1 s." in details
        assert (await waiting[0].response()).status == 200
        for client in (*waiting, *crowd):
            await client.disconnect()
        after = await (await Client.get(server.url)).response()
        assert after.status in (200, 503)
        late = [await Client.connect(server.url) for _ in range(200)]
        assert server.stop() == 0
        for client in (*idle, *late):
            await client.disconnect()
    assert sum("rejecting those beyond 108 (" in line for line in server.log) == 1
    assert not [line for line in server.log if "Traceback" in line]


async def test_descriptors_for_the_work() -> None:
    """However many clients come, the work can open files."""
    command = (*UVICORN, "tests.support.apps:opening_files")
    with serve(*limited(256, 256, *command), WORK_SECONDS="0.5") as server:
        client = await Client.get(server.url)
        crowd = [await Client.connect(server.url) for _ in range(300)]
        assert (await client.response()).status == 200
        for client in crowd:
            await client.disconnect()


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_unix_socket(loop: str, tmp_path: Path) -> None:
    """A Unix socket is served at its path by one process, on any event loop."""
    path = str(tmp_path / "socket")
    uvicorn = (
        sys.executable,
        "-m",
        "uvicorn",
        "--loop",
        loop,
        "--uds",
        path,
        "tests.support.apps:sleeping",
    )
    with serve(*uvicorn, WORK_SECONDS="0.01") as server:
        second = run(*uvicorn)
        assert second.returncode == 3
        assert f"handler: another process already serves {path}, and two would " in second.stdout
        with httpx.Client(transport=httpx.HTTPTransport(uds=path), base_url="http://a") as client:
            assert client.get("/test").status_code == 200
        assert server.stop() == 0
    assert not Path(path).exists()


@pytest.mark.parametrize("command", [PYTHON_M, (*UVICORN, "handler.main:app")])
def test_max_waiting_that_does_not_fit(command: tuple[str, ...]) -> None:
    """A `MAX_WAITING` beyond what the hard limit on open files allows is rejected on start."""
    done = run(*limited(64, 256, *command), MAX_WAITING="224", PORT="0")
    assert done.returncode == 3
    assert (
        done.stdout.count(
            "handler: MAX_WAITING=224: must be below 224 at a limit of 256 open files; "
            "lower it, or raise the limit (ulimit -Hn)\n"
        )
        == 1
    )
    assert "Traceback" not in done.stdout


INFINITY = resource.RLIM_INFINITY


@pytest.mark.parametrize(
    ("soft", "hard", "max_waiting", "raised", "connections"),
    [
        (64, 64, 47, 64, 48),
        (64, 124, 107, 124, 108),
        (256, 256, 223, 256, 224),
        (1024, 1024, 959, 1024, 960),
        (1024, 20_000, 100, 10_240, 10_176),
        (1024, 20_000, 19_000, 19_065, 19_001),
        (1024, 10**9, 100, 10_240, 10_176),
        (256, INFINITY, 100, 10_240, 10_176),
        (20_000, INFINITY, 100, 20_000, 19_936),
        (INFINITY, INFINITY, 100, INFINITY, 10_176),
    ],
)
def test_connection_limit(
    soft: int,
    hard: int,
    max_waiting: int,
    raised: int,
    connections: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The soft limit is raised, not needlessly; an eighth of it, 16 to 64, is no connection's."""
    limits = [(soft, hard)]
    monkeypatch.setattr(resource, "setrlimit", lambda kind, new: limits.append(new))
    monkeypatch.setattr(resource, "getrlimit", lambda kind: limits[-1])
    assert connection_limit(max_waiting) == connections
    assert limits[-1] == (raised, hard)
    if hard not in (INFINITY, 10**9):
        with pytest.raises(InvalidSetting, match=f"at a limit of {hard} open files"):
            connection_limit(hard - 10)
