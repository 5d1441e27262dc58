"""A flood: connections that call again the moment they are answered, and newcomers beside it."""

import asyncio
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from multiprocessing import get_context

import httpx

from tests.support.callers import Caller
from tests.support.server import Server, resident_memory

REQUEST = b"GET /test HTTP/1.1\r\nHost: test\r\n\r\n"
APART = 0.5
"""Seconds from one newcomer to the next."""


class Flooder(asyncio.Protocol):
    """A connection that calls again the moment it is answered; notes each answer in `answers`."""

    def __init__(self, answers: list[tuple[float, int]]) -> None:
        self.answers = answers
        self.answer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        transport.write(REQUEST)

    def data_received(self, data: bytes) -> None:
        self.answer += data
        if self.answer.endswith(b"}"):
            self.answers.append((time.monotonic(), int(self.answer[9:12])))
            self.answer = b""
            self.transport.write(REQUEST)


def flood(url: str, connections: int, seconds: float) -> list[tuple[float, int]]:
    """Flood `url`; return when answers came, on the monotonic clock, and with which status."""
    answers: list[tuple[float, int]] = []
    server = httpx.URL(url)

    async def main() -> None:
        loop = asyncio.get_running_loop()
        flooders = [
            await loop.create_connection(lambda: Flooder(answers), server.host, server.port or 80)
            for _ in range(connections)
        ]
        await asyncio.sleep(seconds)
        for transport, _ in flooders:
            transport.abort()

    asyncio.run(main())
    return answers


@dataclass
class Withstood:
    """What a flood did to a server: seconds, and KiB of memory."""

    refusals_a_second: float
    newcomers: list[float]
    turns: list[float]
    turn_in_peace: float
    memory: int


async def call(url: str) -> tuple[float, float, int]:
    """Call once; return when that began, when it was answered, and with which status."""
    began = time.monotonic()
    answer = await (await Caller.call(url)).answer()
    return began, time.monotonic(), answer.status


def turns(answered: list[float]) -> list[float]:
    """Return the seconds from each answer to the next."""
    return [later - earlier for earlier, later in pairwise(sorted(answered))]


async def withstand(server: Server, connections: int, newcomers: int) -> Withstood:
    """See two callers served in peace, then flood the server while newcomers come one by one."""
    in_peace = await asyncio.gather(*(call(server.url) for _ in range(2)))
    loop = asyncio.get_running_loop()
    seconds = (newcomers + 4) * APART
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        flooding = loop.run_in_executor(process, flood, server.url, connections, seconds)
        await asyncio.sleep(2 * APART)
        coming = []
        for _ in range(newcomers):
            coming.append(asyncio.create_task(call(server.url)))
            await asyncio.sleep(APART)
        memory = resident_memory(server.process.pid)
        answers = await flooding
    came = await asyncio.gather(*coming)
    assert {status for _, status in answers} <= {200, 503}
    served = [when for when, status in answers if status == 200]
    served += [ended for _, ended, status in came if status == 200 and ended < answers[-1][0]]
    return Withstood(
        refusals_a_second=sum(status == 503 for _, status in answers) / seconds,
        newcomers=[ended - began for began, ended, status in came if status == 503],
        turns=turns(served),
        turn_in_peace=min(turns([ended for _, ended, _ in in_peace])),
        memory=memory,
    )
