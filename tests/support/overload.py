"""An overload: clients that send again as soon as they have a response; for its own process."""

import asyncio
import time

import httpx

REQUEST = b"GET /test HTTP/1.1\r\nHost: test\r\n\r\n"
Responses = list[tuple[float, int]]
"""The time of each response, on the monotonic clock, and its status."""


class OverloadingClient(asyncio.Protocol):
    def __init__(self, responses: Responses) -> None:
        self.responses = responses
        self.response = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        transport.write(REQUEST)

    def data_received(self, data: bytes) -> None:
        self.response += data
        if self.response.endswith(b"}"):
            self.responses.append((time.monotonic(), int(self.response[9:12])))
            self.response = b""
            self.transport.write(REQUEST)


def overload(url: str, n: int, seconds: float) -> Responses:
    """Overload `url` from `n` connections for `seconds`; return every response."""
    responses: Responses = []
    server = httpx.URL(url)

    async def main() -> None:
        loop = asyncio.get_running_loop()
        clients = [
            await loop.create_connection(
                lambda: OverloadingClient(responses), server.host, server.port or 80
            )
            for _ in range(n)
        ]
        await asyncio.sleep(seconds)
        for transport, _ in clients:
            transport.abort()

    asyncio.run(main())
    return responses
