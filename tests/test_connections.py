"""Connections: their limit, and clients that are slow, greedy or hostile."""

import asyncio
import errno
import json
import resource
import socket
import time
from asyncio.trsock import TransportSocket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import partial

import httpx
import pytest
import uvicorn
from starlette.responses import Response

from handler.app import create_app
from handler.server import connection, descriptors
from handler.server.descriptors import Overflow, raise_limit, require
from handler.settings import InvalidSetting, Settings
from tests.support.clients import Client, until
from tests.support.server import LIMIT, PYTHON_M, UVICORN, run, serve

GET = b"GET /test HTTP/1.1\r\nHost: test\r\n\r\n"
WORK_SECONDS = 0.2


class Service:
    """A uvicorn server in this process that counts its work."""

    def __init__(self, max_waiting: int, http: str) -> None:
        self.worked = 0
        self.may_end = asyncio.Event()
        self.may_end.set()
        settings = Settings(work_seconds=WORK_SECONDS, max_waiting=max_waiting)
        app = create_app(settings, self.work)
        config = uvicorn.Config(app, port=0, http=http, log_config=None, timeout_keep_alive=0)
        self.server = uvicorn.Server(config)

    async def work(self, seconds: float) -> None:
        self.worked += 1
        await asyncio.sleep(seconds)
        await self.may_end.wait()

    @property
    def url(self) -> str:
        [listener] = self.server.servers[0].sockets
        return f"http://127.0.0.1:{listener.getsockname()[1]}"

    async def connections(self, n: int) -> None:
        """Return once `n` connections are open."""
        await until(lambda: len(self.server.server_state.connections) == n)


@asynccontextmanager
async def serving(max_waiting: int = 100, http: str = "httptools") -> AsyncIterator[Service]:
    service = Service(max_waiting, http)
    serving = asyncio.create_task(service.server.serve())
    await until(lambda: service.server.started)
    yield service
    service.server.should_exit = True
    await serving


@pytest.fixture
async def service() -> AsyncIterator[Service]:
    async with serving() as service:
        yield service


@pytest.fixture
def head_seconds(monkeypatch: pytest.MonkeyPatch) -> float:
    """Give a connection less than ten seconds to send a request's head."""
    monkeypatch.setattr(connection, "HEAD_SECONDS", 0.3)
    return 0.3


def limited(soft: int, hard: int, *command: str) -> tuple[str, ...]:
    """Make `command` run under limits on open files."""
    return ("sh", "-c", f'ulimit -S -n {soft} && ulimit -H -n {hard} && exec "$@"', "sh", *command)


COMMANDS = [PYTHON_M, (*UVICORN, "--loop", "asyncio", "handler.main:app")]


@pytest.mark.parametrize("command", COMMANDS, ids=["python -m", "uvicorn"])
async def test_a_crowd_at_a_low_limit(command: tuple[str, ...]) -> None:
    """At the limit on open files, all further clients get a 503, and the log has one line."""
    settings = {"WORK_SECONDS": "0.5", "MAX_WAITING": "100", "PORT": "0"}
    with serve(*limited(100, 124, *command), **settings) as server:
        idle = [await Client.connect(server.url) for _ in range(3)]
        waiting = [await Client.get(server.url) for _ in range(101)]
        crowd = [await Client.get(server.url) for _ in range(100)]
        rejected = [await client.read() for client in crowd]
        assert {response.status for response in rejected} == {503}
        assert {response.headers["retry-after"] for response in rejected} == {"1"}
        details = {json.loads(response.body)["detail"] for response in rejected}
        assert "Too many connections; try again in 1 s." in details
        served = await waiting[0].response()
        assert served.status == 200
        for client in (*waiting, *crowd):
            await client.disconnect()
        after = await (await Client.get(server.url)).response()
        assert after.status in (200, 503)
        began = time.monotonic()
        late = [await Client.connect(server.url) for _ in range(200)]
        assert server.stop() == 0
        for client in (*idle, *late):
            await client.disconnect()
        assert time.monotonic() - began < 2
    assert sum("Rejecting connections beyond 108" in line for line in server.log) == 1
    assert not [line for line in server.log if "Traceback" in line]


@pytest.mark.parametrize("command", COMMANDS, ids=["python -m", "uvicorn"])
def test_max_waiting_that_does_not_fit(command: tuple[str, ...]) -> None:
    """A `MAX_WAITING` beyond what the hard limit on open files allows is rejected on start."""
    done = run(*limited(64, 256, *command), MAX_WAITING="224", PORT="0")
    assert done.returncode == 3
    assert (
        "handler: MAX_WAITING=224: must be below 224 where 256 files may be open: "
        "lower it, or raise that limit (ulimit -Hn)\n"
    ) in done.stdout


async def closed(client: Client) -> bytes:
    """Return what the client still receives until its connection is closed."""
    async with asyncio.timeout(LIMIT):
        try:
            return await client.reader.read()
        except ConnectionResetError:
            return b""
        finally:
            await client.disconnect()


@pytest.mark.parametrize("sent", [b"", b"GET /te", GET[:-2]], ids=["nothing", "a line", "a head"])
async def test_half_a_request(sent: bytes, service: Service, head_seconds: float) -> None:
    """A client that does not send a complete head is cut off; others are served meanwhile."""
    began = time.monotonic()
    client = await Client.connect(service.url)
    client.writer.write(sent)
    assert (await (await Client.get(service.url)).response()).status == 200
    assert await closed(client) == b""
    assert time.monotonic() - began >= head_seconds


async def test_after_a_response(service: Service, head_seconds: float) -> None:
    """The next request on a connection has the full time, however short uvicorn's keep-alive is."""
    client = await Client.get(service.url)
    for _ in range(2):
        assert (await client.read()).status == 200
        await asyncio.sleep(head_seconds / 2)
        client.writer.write(GET)
    assert (await client.read()).status == 200
    assert await closed(client) == b""


async def test_slow_clients(service: Service, head_seconds: float) -> None:
    """Requests whose heads arrive slowly, in three pieces, but in time, are served."""
    clients = [await Client.connect(service.url) for _ in range(5)]
    for piece in (GET[:9], GET[9:20], GET[20:]):
        for client in clients:
            client.writer.write(piece)
        await asyncio.sleep(head_seconds / 4)
    responses = await asyncio.gather(*(client.response() for client in clients))
    assert [response.status for response in responses] == [200] * 5


def head(*headers: str, path: str = "/test") -> bytes:
    """Make a request's head."""
    return "\r\n".join([f"GET {path} HTTP/1.1", "Host: test", *headers, "", ""]).encode()


CHUNKS = 99 * (b"2710\r\n" + 10_000 * b"x" + b"\r\n")

HONEST = {
    "many headers": head(*(f"X-{n}: x" for n in range(99))),
    "a long header": head(f"X: {'x' * 60_000}"),
    "a long query": head(path=f"/test?{'x' * 60_000}"),
    "a body": head("Content-Length: 1000000") + b"x" * 1_000_000,
    "a body in chunks": head("Transfer-Encoding: chunked") + CHUNKS + b"0\r\n\r\n",
    "a trailer": head("Transfer-Encoding: chunked") + b"0\r\nX: x\r\n\r\n",
    "HTTP/1.0": b"GET /test HTTP/1.0\r\n\r\n",
    "h2c": head("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABk"),
    "closing": head("Connection: close"),
}


async def test_honest_requests(service: Service) -> None:
    """Whatever HTTP allows is served, within bounds that are far away."""
    clients = [await Client.connect(service.url) for _ in HONEST]
    for client, request in zip(clients, HONEST.values(), strict=True):
        client.writer.write(request)
    responses = await asyncio.gather(*(client.response() for client in clients))
    statuses = [response.status for response in responses]
    assert dict(zip(HONEST, statuses, strict=True)) == dict.fromkeys(HONEST, 200)


async def test_continue(service: Service) -> None:
    """A client that expects a 100 gets it, sends its body and is served."""
    client = await Client.get(service.url, headers="Expect: 100-continue\r\nContent-Length: 1\r\n")
    assert await client.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    client.writer.write(b"x")
    assert (await client.response()).status == 200


@pytest.mark.parametrize("path", ["/test", "/nothing"])
async def test_a_slow_body(path: str, service: Service, head_seconds: float) -> None:
    """A body may arrive slowly while its request waits; soon after the response it is cut off."""
    waited_for = await Client.get(service.url)
    client = await Client.get(service.url, path, "Content-Length: 1000\r\n")
    response = asyncio.create_task(client.read())
    while not response.done():
        client.writer.write(b"x")
        await asyncio.sleep(head_seconds / 10)
    assert (await response).status == {"/test": 200, "/nothing": 404}[path]
    assert await closed(client) == b""
    await waited_for.response()


GREEDY = {
    "too many headers": (head(*(f"X-{n}: x" for n in range(100))), b""),
    "a head too long": (head(*(f"X-{n}: {'x' * 20_000}" for n in range(4))), b""),
    "a target too long": (head(path=f"/test?{'x' * 70_000}"), b""),
    "endless headers": (head()[:-2], b"X: x\r\n" * 1000),
    "an endless header": (head()[:-2] + b"X: ", b"x" * 10_000),
    "an endless name": (head()[:-2], b"x" * 10_000),
    "no HTTP": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", b""),
}


@pytest.mark.parametrize(("start", "more"), GREEDY.values(), ids=GREEDY)
async def test_greedy_heads(start: bytes, more: bytes, service: Service) -> None:
    """A head that is too long or not HTTP gets a 400, which the client has time to read."""
    client = await Client.connect(service.url)
    client.writer.write(start)
    sent = len(start)
    response = asyncio.create_task(client.read())
    while more and not response.done():
        client.writer.write(more)
        await client.writer.drain()
        sent += len(more)
        assert sent < 2**22
    assert (await response).status == 400
    assert (await response).headers["connection"] == "close"
    await client.disconnect()
    await service.connections(0)


ENDLESS = {
    "trailers": (head("Transfer-Encoding: chunked") + b"0\r\n", b"X: x\r\n" * 1000),
    "a trailer": (head("Transfer-Encoding: chunked") + b"0\r\nX: ", b"x" * 10_000),
    "a chunk's extension": (head("Transfer-Encoding: chunked") + b"1;", b"x" * 10_000),
    "requests ahead": (GET, 100 * GET),
}


@pytest.mark.parametrize(("start", "more"), ENDLESS.values(), ids=ENDLESS)
async def test_endless_ends(start: bytes, more: bytes, service: Service) -> None:
    """An endless rest after a head is dropped: the request gets its response, and that is all."""
    before = service.server.server_state.total_requests
    client = await Client.connect(service.url)
    client.writer.write(start)
    response = asyncio.create_task(client.read())
    while not response.done():
        client.writer.write(more)
        await asyncio.sleep(0)
    assert (await response).status == 200
    assert (await response).headers["connection"] == "close"
    await client.disconnect()
    await service.connections(0)
    assert service.server.server_state.total_requests == before + 1
    assert service.worked == 1


@pytest.mark.parametrize("later", [False, True], ids=["in a packet", "in a later packet"])
async def test_ghosts(later: bool, service: Service) -> None:
    """A client that disconnects is noticed, however many requests it had sent ahead."""
    service.may_end.clear()
    running = await Client.get(service.url)
    await until(lambda: service.worked)
    ghosts = [await Client.connect(service.url) for _ in range(50)]
    for request in (GET, GET) if later else (2 * GET,):
        for ghost in ghosts:
            ghost.writer.write(request)
        await service.connections(51)
    for ghost in ghosts:
        await ghost.disconnect()
    await service.connections(1)
    service.may_end.set()
    assert (await running.response()).status == 200
    assert (await (await Client.get(service.url)).response()).status == 200
    assert service.worked == 2


async def test_requests_ahead(service: Service) -> None:
    """Of three requests in one packet, the first gets a response, and the connection is closed."""
    client = await Client.connect(service.url)
    client.writer.write(3 * GET)
    assert (await client.read()).status == 200
    assert await closed(client) == b""
    assert service.worked == 1


async def test_idle_connections_make_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """At the bound a new client gets the place of a connection that has been idle for a while."""
    monkeypatch.setattr(connection, "require", lambda max_waiting: 5)
    monkeypatch.setattr(descriptors, "IDLE_SECONDS", 0.2)
    async with serving() as service:
        kept = await Client.get(service.url, "/nothing")
        assert (await kept.read()).status == 404
        idle = [await Client.connect(service.url) for _ in range(4)]
        await service.connections(5)
        rejected = await (await Client.get(service.url)).response()
        assert rejected.status == 503
        assert b"Too many connections" in rejected.body
        await asyncio.sleep(0.2)
        assert (await (await Client.get(service.url)).response()).status == 200
        assert await closed(kept) == b""
        for client in idle:
            await client.disconnect()


async def test_nothing_is_read(service: Service) -> None:
    """A client that sends requests and never reads is cut off when the kernel's buffers fill up."""
    with socket.socket() as greedy:
        greedy.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        greedy.connect(("127.0.0.1", httpx.URL(service.url).port))
        greedy.setblocking(False)
        await service.connections(1)
        state = service.server.server_state
        for request in range(10_000):
            with suppress(ConnectionError):
                await asyncio.get_running_loop().sock_sendall(greedy, head(path="/openapi.json"))
            await until(
                partial(lambda n: state.total_requests > n or not state.connections, request)
            )
            if not state.connections:
                break
        assert 10 < state.total_requests < 9_000


async def test_shutdown_with_connections_open() -> None:
    """The server shuts down within a turn, whatever connections are open."""
    async with serving() as service:
        clients = [await Client.connect(service.url) for _ in range(4)]
        clients[1].writer.write(b"GET /te")
        clients[2].writer.write(3 * GET)
        clients[3].writer.write(b"\r\n")
        await service.connections(4)
        began = time.monotonic()
    assert time.monotonic() - began < WORK_SECONDS + 0.5
    for client in clients:
        await closed(client)


async def test_another_protocol() -> None:
    """If uvicorn is given another protocol, it uses that."""
    async with serving(http="h11") as service:
        assert (await (await Client.get(service.url)).response()).status == 200


OUT_OF_DESCRIPTORS = {
    "message": "socket.accept() out of system resource",
    "exception": OSError(errno.EMFILE, "Too many open files"),
}


async def test_rejections_in_an_iteration(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of clients without a descriptor some are rejected in each iteration, until all are."""
    monkeypatch.setattr(descriptors, "REJECTED_AT_ONCE", 2)
    loop = asyncio.get_running_loop()
    overflow = Overflow(1, Response("full", 503))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        clients = [await Client.get(url) for _ in range(5)]
        context = OUT_OF_DESCRIPTORS | {"socket": TransportSocket(listener)}
        for _ in range(3):  # asyncio goes on to accept
            loop.call_exception_handler(context)
        responses = [client.reader.read() for client in clients]
        assert await asyncio.gather(*responses) == [overflow.response] * 5
        loop.remove_reader(listener)
    for client in clients:
        await client.disconnect()


async def test_listener_that_is_closed_meanwhile(caplog: pytest.LogCaptureFixture) -> None:
    """At a shutdown in want of descriptors nothing listens again, and nothing is logged."""
    loop = asyncio.get_running_loop()
    Overflow(1, Response())
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        loop.call_exception_handler(OUT_OF_DESCRIPTORS | {"socket": TransportSocket(listener)})
        descriptor = listener.fileno()
    await asyncio.sleep(0)
    assert not loop.remove_reader(descriptor)
    caplog.clear()
    message = "Exception in callback BaseSelectorEventLoop._start_serving()"
    loop.call_exception_handler({"message": message, "exception": ValueError("descriptor: -1")})
    assert not caplog.records


async def test_other_errors(caplog: pytest.LogCaptureFixture) -> None:
    """Errors other than a lack of descriptors go to the handler that would have got them."""
    loop = asyncio.get_running_loop()
    broken = {"message": "broken", "exception": OSError(errno.EMFILE, "no socket")}
    Overflow(1, Response())
    loop.call_exception_handler(broken)
    assert "broken" in caplog.text
    handled: list[object] = []
    loop.set_exception_handler(lambda loop, context: handled.append(context))
    Overflow(1, Response())
    loop.call_exception_handler(broken)
    assert handled == [broken]


@pytest.fixture
def limits(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Fake the limits on open files: the last of the list is in force."""
    limits = [(256, 4096)]

    def set_limits(kind: int, new: tuple[int, int]) -> None:
        if resource.RLIM_INFINITY in (new[0], limits[-1][0]):
            raise ValueError("not allowed to raise maximum limit")
        limits.append(new)

    monkeypatch.setattr(resource, "setrlimit", set_limits)
    monkeypatch.setattr(resource, "getrlimit", lambda kind: limits[-1])
    return limits


def test_raise_limit(limits: list[tuple[int, int]]) -> None:
    """The soft limit is raised to the hard one, or to macOS's maximum if there is no hard one."""
    assert raise_limit() == 4096
    assert limits[-1] == (4096, 4096)
    limits[:] = [(256, resource.RLIM_INFINITY)]
    assert raise_limit() == 10240
    limits[:] = [(resource.RLIM_INFINITY, resource.RLIM_INFINITY)]
    assert raise_limit() == 10240


@pytest.mark.parametrize(
    ("hard", "fit"), [(64, 48), (124, 108), (256, 224), (1024, 960), (20_000, 19_936)]
)
def test_require(hard: int, fit: int, limits: list[tuple[int, int]]) -> None:
    """An eighth of the descriptors, 16 to 64, is reserved; the queue must fit in the rest."""
    limits[:] = [(64, hard)]
    assert require(fit - 1) == fit
    with pytest.raises(InvalidSetting, match=f"={fit}: must be below {fit} where {hard} files"):
        require(fit)


@pytest.mark.virtual_time
async def test_log_once_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    """However many connections are rejected, the log says so once a minute."""
    overflow = Overflow(7, Response())
    for _ in range(130):
        overflow.log()
        await asyncio.sleep(1)
    assert caplog.text.count("Rejecting connections beyond 7: ") == 3
