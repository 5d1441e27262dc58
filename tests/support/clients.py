"""Clients with one connection each and no HTTP library: they can disconnect, or misbehave."""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import httpx


@dataclass
class Response:
    status: int
    headers: httpx.Headers
    body: bytes


class Client:
    """A client with a connection of its own."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    async def connect(cls, url: str) -> "Client":
        """Connect to the server at `url` without sending anything."""
        server = httpx.URL(url)
        return cls(*await asyncio.open_connection(server.host, server.port))

    @classmethod
    async def get(cls, url: str, path: str = "/test", headers: str = "") -> "Client":
        """Connect to the server at `url` and send `GET path`; `headers` are complete lines."""
        client = await cls.connect(url)
        client.writer.write(f"GET {path} HTTP/1.1\r\nHost: test\r\n{headers}\r\n".encode())
        return client

    async def read(self) -> Response:
        """Return the next response on the connection.

        Raises `asyncio.IncompleteReadError` or `ConnectionError` when the connection breaks.
        """
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers = httpx.Headers(dict(line.split(": ", 1) for line in head[1:] if line))
        if "content-length" in headers:
            body = await self.reader.readexactly(int(headers["content-length"]))
        else:
            body = await self.reader.read()
        return Response(int(head[0].split()[1]), headers, body)

    async def response(self) -> Response:
        """Return the response, or raise what `read` does, and disconnect."""
        try:
            return await self.read()
        finally:
            await self.disconnect()

    async def disconnect(self) -> None:
        self.writer.close()
        with suppress(ConnectionError):
            await self.writer.wait_closed()


async def fence(url: str) -> None:
    """Return once the server has seen all earlier events: it handles its sockets in order."""
    client = await Client.get(url, "/nothing")
    assert (await client.response()).status == 404


async def until(condition: Callable[[], object]) -> None:
    """Return once `condition` holds; fail after ten seconds."""
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - a server's state has no event
            await asyncio.sleep(0)
