"""A flood: connections that call again the moment they are answered. It runs in its own process."""

import asyncio
import time

import httpx

REQUEST = b"GET /test HTTP/1.1\r\nHost: test\r\n\r\n"
Answered = list[tuple[float, int]]
"""When answers came, on the monotonic clock, and with which status."""


class Flooder(asyncio.Protocol):
    def __init__(self, answered: Answered) -> None:
        self.answered = answered
        self.answer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        transport.write(REQUEST)

    def data_received(self, data: bytes) -> None:
        self.answer += data
        if self.answer.endswith(b"}"):
            self.answered.append((time.monotonic(), int(self.answer[9:12])))
            self.answer = b""
            self.transport.write(REQUEST)


def flood(url: str, connections: int, seconds: float) -> Answered:
    """Flood `url` from so many connections; return every answer."""
    answered: Answered = []
    server = httpx.URL(url)

    async def main() -> None:
        loop = asyncio.get_running_loop()
        flooders = [
            await loop.create_connection(lambda: Flooder(answered), server.host, server.port or 80)
            for _ in range(connections)
        ]
        await asyncio.sleep(seconds)
        for transport, _ in flooders:
            transport.abort()

    asyncio.run(main())
    return answered
