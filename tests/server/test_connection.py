"""Clients that are slow, greedy, hasty or hostile, on virtual time."""

import asyncio
import socket
from collections.abc import AsyncIterator

import httpx
import pytest

from handler.server.connection import HEAD_SECONDS
from tests.support.clients import Client, until
from tests.support.service import Service, serving

pytestmark = pytest.mark.virtual_time

GET = b"GET /test HTTP/1.1\r\nHost: test\r\n\r\n"


@pytest.fixture
async def service() -> AsyncIterator[Service]:
    async with serving() as service:
        yield service


def now() -> float:
    return asyncio.get_running_loop().time()


async def closed(client: Client) -> bytes:
    """Return what the client still receives until its connection is closed."""
    try:
        async with asyncio.timeout(10 * HEAD_SECONDS):
            return await client.reader.read()
    except ConnectionResetError:
        return b""
    finally:
        await client.disconnect()


@pytest.mark.parametrize("sent", [b"", b"GET /te", GET[:-2]], ids=["nothing", "a line", "a head"])
async def test_half_a_request(sent: bytes, service: Service) -> None:
    """A client that does not send a complete head is cut off; others are served meanwhile."""
    began = now()
    client = await Client.connect(service.url)
    client.writer.write(sent)
    assert (await (await Client.get(service.url)).response()).status == 200
    assert await closed(client) == b""
    assert HEAD_SECONDS <= now() - began < HEAD_SECONDS + 1


async def test_after_a_response(service: Service) -> None:
    """The next request on a connection has its time, however short uvicorn's keep-alive is."""
    client = await Client.get(service.url)
    for _ in range(2):
        assert (await client.read()).status == 200
        await asyncio.sleep(HEAD_SECONDS - 1)
        client.writer.write(GET)
    assert (await client.read()).status == 200
    assert await closed(client) == b""


async def test_a_long_keep_alive() -> None:
    """A connection is kept as long as uvicorn's option says; a head has no more time for that."""
    async with serving(timeout_keep_alive=75) as service:
        client = await Client.get(service.url)
        assert (await client.read()).status == 200
        await asyncio.sleep(70)
        client.writer.write(GET)
        assert (await client.read()).status == 200
        client.writer.write(GET[:-2])
        began = now()
        assert await closed(client) == b""
        assert HEAD_SECONDS <= now() - began < HEAD_SECONDS + 1


async def test_slow_clients(service: Service) -> None:
    """Requests whose heads arrive slowly, in three pieces, but in time, are served."""
    clients = [await Client.connect(service.url) for _ in range(5)]
    for piece in (GET[:9], GET[9:20], GET[20:]):
        for client in clients:
            client.writer.write(piece)
        await asyncio.sleep(HEAD_SECONDS / 3)
    responses = await asyncio.gather(*(client.response() for client in clients))
    assert [response.status for response in responses] == [200] * 5


def head(*headers: str, path: str = "/test") -> bytes:
    """Make a request's head."""
    return "\r\n".join([f"GET {path} HTTP/1.1", "Host: test", *headers, "", ""]).encode()


CHUNKS = 99 * (b"2710\r\n" + 10_000 * b"x" + b"\r\n")

VALID = {
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


async def test_valid_requests(service: Service) -> None:
    """Whatever HTTP allows is served, within limits that are far away."""
    clients = [await Client.connect(service.url) for _ in VALID]
    for client, request in zip(clients, VALID.values(), strict=True):
        client.writer.write(request)
    responses = await asyncio.gather(*(client.response() for client in clients))
    statuses = [response.status for response in responses]
    assert dict(zip(VALID, statuses, strict=True)) == dict.fromkeys(VALID, 200)


@pytest.mark.parametrize("path", ["/test", "/nothing"])
async def test_a_slow_body(path: str, service: Service) -> None:
    """A body may arrive slowly, also after its response, and then has the usual time to go on."""
    client = await Client.get(service.url, path, "Content-Length: 1000\r\n")
    for _ in range(3 * HEAD_SECONDS):
        client.writer.write(b"x")
        await asyncio.sleep(1)
    began = now()
    assert (await client.read()).status == {"/test": 200, "/nothing": 404}[path]
    assert await closed(client) == b""
    assert HEAD_SECONDS - 1.5 < now() - began < HEAD_SECONDS


OVERSIZED = {
    "too many headers": (head(*(f"X-{n}: x" for n in range(100))), b""),
    "a head too long": (head(*(f"X-{n}: {'x' * 20_000}" for n in range(4))), b""),
    "a target too long": (head(path=f"/test?{'x' * 70_000}"), b""),
    "endless headers": (head()[:-2], b"X: x\r\n" * 1000),
    "an endless header": (head()[:-2] + b"X: ", b"x" * 10_000),
    "an endless name": (head()[:-2], b"x" * 10_000),
    "no HTTP": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", b""),
}


@pytest.mark.parametrize(("start", "more"), OVERSIZED.values(), ids=OVERSIZED)
async def test_oversized_heads(start: bytes, more: bytes, service: Service) -> None:
    """A head that is too long or not HTTP gets a 400, which the client has time to read."""
    client = await Client.connect(service.url)
    client.writer.write(start)
    sent = len(start)
    response = asyncio.create_task(client.read())
    while more and not response.done():
        client.writer.write(more)
        await client.writer.drain()
        await asyncio.sleep(0)
        sent += len(more)
        assert sent < 2**22
    assert (await response).status == 400
    assert (await response).headers["connection"] == "close"
    assert await closed(client) == b""
    await service.connections(0)


ENDLESS = {
    "trailers": (head("Transfer-Encoding: chunked") + b"0\r\n", b"X: x\r\n" * 1000),
    "a trailer": (head("Transfer-Encoding: chunked") + b"0\r\nX: ", b"x" * 10_000),
    "a chunk's extension": (head("Transfer-Encoding: chunked") + b"1;", b"x" * 10_000),
    "requests": (GET, 100 * GET),
}


@pytest.mark.parametrize(("start", "more"), ENDLESS.values(), ids=ENDLESS)
async def test_endless_ends(start: bytes, more: bytes, service: Service) -> None:
    """An endless rest after a head is dropped: the request gets its response, and that is all."""
    client = await Client.connect(service.url)
    client.writer.write(start)
    response = asyncio.create_task(client.read())
    while not response.done():
        client.writer.write(more)
        await asyncio.sleep(0.01)
    assert (await response).status == 200
    assert (await response).headers["connection"] == "close"
    await client.disconnect()
    await service.connections(0)
    assert service.requests == 1


@pytest.mark.parametrize("later", [False, True], ids=["in a packet", "in a later packet"])
async def test_disconnect_with_requests_ahead(later: bool, service: Service) -> None:
    """A client that disconnects is noticed, however many requests it had sent ahead."""
    service.may_end.clear()
    clients = [await Client.connect(service.url) for _ in range(50)]
    for request in (GET, GET) if later else (2 * GET,):
        for client in clients:
            client.writer.write(request)
        await until(lambda: service.requests == 50)
        await asyncio.sleep(1)
    for client in clients:
        await client.disconnect()
    await service.connections(0)
    assert service.requests == 50


async def test_pipelining(service: Service) -> None:
    """Of three requests in one packet, the first gets a response, and the connection is closed."""
    client = await Client.connect(service.url)
    client.writer.write(3 * GET)
    assert (await client.read()).status == 200
    assert await closed(client) == b""
    assert service.requests == 1


async def test_an_early_request(service: Service) -> None:
    """A request that comes before the server is quite done with the one ahead is served next."""
    service.may_end.clear()
    client = await Client.get(service.url)
    await until(lambda: service.requests)
    client.writer.write(GET)
    await asyncio.sleep(1)
    service.may_end.set()
    assert [(await client.read()).status for _ in range(2)] == [200] * 2
    assert service.requests == 2
    assert await closed(client) == b""


async def test_too_much_too_early(service: Service) -> None:
    """What comes before the response, and is longer than a head, is dropped."""
    client = await Client.get(service.url)
    await until(lambda: service.requests)
    for _ in range(7):
        client.writer.write(10_000 * b"x")
        await asyncio.sleep(service.seconds / 10)
    response = await client.read()
    assert (response.status, response.headers["connection"]) == (200, "close")
    assert await closed(client) == b""
    assert service.requests == 1


def connect(service: Service) -> socket.socket:
    """Connect a client that reads only when it is told to."""
    client = socket.create_connection(("127.0.0.1", httpx.URL(service.url).port))
    client.setblocking(False)
    return client


@pytest.mark.parametrize("request_", [GET, head("Connection: close")], ids=["keep-alive", "close"])
async def test_a_long_response(request_: bytes, service: Service) -> None:
    """A client that reads slowly gets all of a long response; one that does not read is cut off."""
    service.body = bytes(2**24)
    loop = asyncio.get_running_loop()
    with connect(service) as slow, connect(service) as never:
        for client in (slow, never):
            await loop.sock_sendall(client, request_)
        began = now()
        received = 0
        while received < len(service.body):
            await asyncio.sleep(0.5)
            piece = await loop.sock_recv(slow, 2**18)
            assert piece, "cut off"
            received += len(piece)
        assert now() - began > 2 * HEAD_SECONDS
        await service.connections(0)


async def test_nothing_is_read(service: Service) -> None:
    """A client that sends requests and never reads is cut off when the buffers are full."""
    with connect(service) as greedy:
        await service.connections(1)
        service.body = bytes(2**12)
        for _ in range(10_000):
            try:
                await asyncio.get_running_loop().sock_sendall(greedy, GET)
            except ConnectionError:
                break
            await asyncio.sleep(2 * service.seconds)
        await service.connections(0)
        assert 10 < service.requests < 10_000


async def test_shutdown_with_connections_open() -> None:
    """The server shuts down soon, whatever connections are open."""
    async with serving() as service:
        service.body = bytes(2**24)
        clients = [await Client.connect(service.url) for _ in range(4)]
        clients[1].writer.write(b"GET /te")
        clients[2].writer.write(3 * GET)
        clients[3].writer.write(b"\r\n")
        with connect(service) as never:
            await asyncio.get_running_loop().sock_sendall(never, GET)
            await service.connections(5)
            await until(lambda: service.requests == 2)
            await asyncio.sleep(service.seconds)
            began = now()
            service.server.should_exit = True
            await service.connections(0)
            assert now() - began < 3
    for client in clients:
        await closed(client)
