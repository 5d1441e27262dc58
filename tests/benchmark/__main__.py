"""The service compared with its usual alternatives: python -m tests.benchmark

Prints two tables, all of it measured in one run on this machine.
Each client closes its connection as soon as it has its response, as HTTP clients do: gunicorn's
sync worker waits for that, for up to 2 s a request, before it accepts the next connection.
"""

import asyncio
import json
import shutil
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from functools import partial
from itertools import pairwise

from handler.server.descriptors import connection_limit
from tests.benchmark.servers import CONTENDERS, Contender, Running
from tests.support.assertions import is_short
from tests.support.clients import Client, Response

WORK_SECONDS = 0.01
LIMIT = 120.0
"""Seconds after which a request without a response counts as one whose connection was closed."""

AMPLE = 5000
"""A queue limit that no row exceeds, unless it is the row's subject."""


async def request(running: Running) -> Response | None:
    """Return the response to a client, or None where its connection was closed or nothing came."""
    try:
        async with asyncio.timeout(LIMIT):
            client = await Client.get(running.url)
            return await client.response()
    except (asyncio.IncompleteReadError, OSError):
        return None


async def burst(running: Running, requests: int) -> list[Response | None]:
    """Send requests simultaneously; return the responses in order of return."""
    pending = [request(running) for _ in range(requests)]
    return [await response for response in asyncio.as_completed(pending)]


async def short_steps(contender: Contender) -> str:
    """Count the steps that are shorter than the work, by the responses' own `elapsed`.

    The work is long enough for a burst to be simultaneous: the service holds the step between
    requests that arrive within a fifth of it.
    """
    if not contender.elapsed_includes_queue:
        return "not measurable"
    seconds = 0.05
    steps = short = 0
    with contender.run(AMPLE, seconds) as running:
        for _ in range(40):
            responses = [response for response in await burst(running, 26) if response]
            elapsed = [json.loads(response.body)["elapsed"] for response in responses]
            steps += len(elapsed) - 1
            short += sum(is_short(*step, seconds) for step in pairwise(elapsed))
    return f"{1000 * short / steps:.0f}"


async def overhead(contender: Contender, clients: int, requests_each: int = 1) -> str:
    """Return the milliseconds per request over `WORK_SECONDS`, by the clients' clock."""
    responses: list[Response | None] = []

    async def loop(running: Running) -> None:
        responses.extend([await request(running) for _ in range(requests_each)])

    with contender.run(AMPLE, WORK_SECONDS) as running:
        await request(running)
        began = time.monotonic()
        await asyncio.gather(*(loop(running) for _ in range(clients)))
        spent = time.monotonic() - began
    if failed := sum(response is None or response.status != 200 for response in responses):
        return f"{failed} failed"
    return f"{1e3 * (spent / len(responses) - WORK_SECONDS):.2f} ms"


async def memory(contender: Contender) -> str:
    """Return the memory that a queued request takes, in KiB, the kernel's not counted."""
    queued = 1000
    with contender.run(AMPLE, 60.0) as running:
        clients = [await Client.get(running.url)]
        await asyncio.sleep(1)
        before = running.memory()
        clients += await asyncio.gather(*(Client.get(running.url) for _ in range(queued)))
        await asyncio.sleep(2)
        after = running.memory()
        for client in clients:
            await client.disconnect()
        running.kill()
    return f"{(after - before) / queued:.1f} KiB"


async def time_lost(contender: Contender) -> str:
    """Return how much longer a request takes behind 20 that were queued and disconnected."""
    seconds = 0.2
    with contender.run(AMPLE, seconds) as running:
        first = asyncio.create_task(request(running))
        await asyncio.sleep(seconds / 4)
        disconnected = [await Client.get(running.url) for _ in range(20)]
        await asyncio.sleep(seconds / 4)
        for client in disconnected:
            await client.disconnect()
        began = time.monotonic()
        await request(running)
        requests = (time.monotonic() - began) / seconds
        await first
    return f"{round(requests - 1.5)}"  # the rest of the first's work and its own


async def beyond_queue_limit(contender: Contender, queue_limit: int) -> str:
    with contender.run(queue_limit, 0.2) as running:
        return summary(await burst(running, 20))


async def stop(contender: Contender) -> str:
    """Tell what one running and five queued requests get, by the signal that stops the server."""
    summaries = []
    for signum in contender.signals:
        with contender.run(AMPLE, 1.0) as running:
            responses = asyncio.gather(*(request(running) for _ in range(6)))
            await asyncio.sleep(0.3)
            running.send_signal(signum)
            summaries.append(f"{signum.name}: {summary(await responses)}")
    return "; ".join(summaries).removeprefix("SIGTERM: ")


def summary(responses: list[Response | None]) -> str:
    def kind(response: Response | None) -> str:
        if response is None:
            return "connection closed"
        return f"{response.status}" + (
            " with Retry-After" if "retry-after" in response.headers else ""
        )

    counts = Counter(map(kind, responses))
    return ", ".join(f"{count} x {what}" for what, count in sorted(counts.items()))


Rows = dict[str, Callable[[Contender], Awaitable[str]]]

WHAT_HAPPENS: Rows = {
    "Steps too short, per thousand": short_steps,
    "Time lost to 20 disconnected clients, in requests": time_lost,
    "20 requests, queue limit 4": partial(beyond_queue_limit, queue_limit=4),
    "SIGTERM with 1 running, 5 queued": stop,
}
WHAT_IT_COSTS: Rows = {
    **{
        f"Overhead per request, {queued:,} queued": partial(overhead, clients=queued)
        for queued in (100, 1000, 5000)
    },
    "Overhead per request, 8 clients in a loop": partial(overhead, clients=8, requests_each=25),
    "Memory per queued request": memory,
}


async def measure(rows: Rows, row: str, name: str) -> str:
    """Return a cell of a table, and say on stderr what is being measured."""
    print(f"{row}, {name}: ", end="", file=sys.stderr, flush=True)
    if name.startswith("HAProxy") and not shutil.which("haproxy"):
        cell = "not installed"
    else:
        cell = await rows[row](CONTENDERS[name])
    print(cell, file=sys.stderr)
    return cell


async def main() -> None:
    for rows in (WHAT_HAPPENS, WHAT_IT_COSTS):
        table = [["", *CONTENDERS], ["---"] * (1 + len(CONTENDERS))]
        table += [[row, *[await measure(rows, row, name) for name in CONTENDERS]] for row in rows]
        for cells in table:
            print("|", " | ".join(cells), "|")
        print()


if __name__ == "__main__":
    connection_limit(AMPLE)  # raises the limit on open files, which the servers inherit
    asyncio.run(main())
