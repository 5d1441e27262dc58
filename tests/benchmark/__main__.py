"""Ours beside what a person would write, or put in front, instead.  python -m tests.benchmark

Prints one table, all of it measured in one run on this machine; that takes some five minutes.
"""

import asyncio
import json
import shutil
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from itertools import pairwise

from handler.connections import require
from handler.settings import exit_if_invalid
from tests.benchmark.contenders import CONTENDERS, Contender, Running
from tests.support.assertions import is_short
from tests.support.clients import Client, Response

WORK_SECONDS = 0.01
LIMIT = 120.0
"""Seconds after which a caller without an answer counts as broken off."""

BOUND = 4
"""How many may wait where the bound is tried."""

AMPLE = 5000
"""A queue limit that no row exceeds, unless it is the row's subject."""


async def answer(caller: Client) -> Response | None:
    """Return a caller's answer, or None where the connection broke or nothing came."""
    try:
        async with asyncio.timeout(LIMIT):
            return await caller.response()
    except (asyncio.IncompleteReadError, ConnectionError, TimeoutError):
        return None


async def burst(running: Running, calls: int) -> list[Response | None]:
    """Call so many times at once; return the answers in order of return."""
    callers = await asyncio.gather(*(Client.get(running.url) for _ in range(calls)))
    return [await one for one in asyncio.as_completed([answer(caller) for caller in callers])]


async def short_steps(contender: Contender) -> str:
    """Count the steps that are short of a turn, by the answers' own elapsed.

    No figure where a call waits before its `elapsed` begins: that counts another thing.
    """
    if not contender.elapsed_includes_queue:
        return "not measurable"
    steps = short = 0
    with contender.run(AMPLE, WORK_SECONDS) as running:
        for _ in range(10):
            answers = [one for one in await burst(running, 51) if one]
            elapsed = [json.loads(one.body)["elapsed"] for one in answers]
            steps += len(elapsed) - 1
            short += sum(is_short(*step, WORK_SECONDS) for step in pairwise(elapsed))
    return f"{1000 * short / steps:.0f}"


async def over_the_limit(contender: Contender, calls: int) -> str:
    """Return the milliseconds a turn took over `WORK_SECONDS`, seen by the callers' clock."""
    with contender.run(AMPLE, WORK_SECONDS) as running:
        await burst(running, 1)
        began = time.monotonic()
        answers = await burst(running, calls)
        spent = time.monotonic() - began
    served = sum(one is not None and one.status == 200 for one in answers)
    if served < calls:
        return f"{calls - served} not served"
    return f"{1e3 * (spent / calls - WORK_SECONDS):.2f} ms"


async def in_a_loop(contender: Contender) -> str:
    """Return the milliseconds a turn took over `WORK_SECONDS`, of eight clients in a loop."""
    loops, clients = 25, 8

    async def loop(url: str) -> None:
        for _ in range(loops):
            response = await answer(await Client.get(url))
            assert response
            assert response.status == 200

    with contender.run(AMPLE, WORK_SECONDS) as running:
        await burst(running, 1)
        began = time.monotonic()
        await asyncio.gather(*(loop(running.url) for _ in range(clients)))
        spent = time.monotonic() - began
    return f"{1e3 * (spent / (loops * clients) - WORK_SECONDS):.2f} ms"


async def memory(contender: Contender) -> str:
    """Return the memory that a waiting caller takes, in KiB."""
    waiting = 1000
    with contender.run(AMPLE, 60.0) as running:
        first = await Client.get(running.url)
        await asyncio.sleep(1)
        before = running.memory()
        callers = await asyncio.gather(*(Client.get(running.url) for _ in range(waiting)))
        await asyncio.sleep(2)
        after = running.memory()
        for caller in [first, *callers]:
            await caller.disconnect()
        running.kill()
    return f"{(after - before) / waiting:.1f} KiB"


async def turns_lost(contender: Contender) -> str:
    """Count the turns that 20 callers cost the next one by hanging up while they waited."""
    seconds = 0.2
    with contender.run(AMPLE, seconds) as running:
        served = await Client.get(running.url)
        gone = [await Client.get(running.url) for _ in range(20)]
        await asyncio.sleep(seconds / 4)
        for caller in gone:
            await caller.disconnect()
        began = time.monotonic()
        [one] = await burst(running, 1)
        turns = (time.monotonic() - began) / seconds
        assert one
        await served.disconnect()
    return f"{max(0, round(turns - 2))}"  # the running one's rest and its own, to the exact step


async def beyond_the_bound(contender: Contender) -> str:
    """Tell what 20 callers get where one is served and `BOUND` may wait."""
    with contender.run(BOUND, 0.2) as running:
        return tell(await burst(running, 20))


async def stop(contender: Contender) -> str:
    """Tell what one running and five waiting callers get, by the signal that stops the server."""
    told = []
    for signum in contender.signals:
        with contender.run(AMPLE, 1.0) as running:
            callers = [await Client.get(running.url) for _ in range(6)]
            await asyncio.sleep(0.3)
            running.send_signal(signum)
            told.append(f"{signum.name}: {tell(await asyncio.gather(*map(answer, callers)))}")
    return "; ".join(told).removeprefix("SIGTERM: ")


def tell(answers: list[Response | None]) -> str:
    def kind(one: Response | None) -> str:
        if one is None:
            return "broken off"
        return f"{one.status}" + (" with Retry-After" if "retry-after" in one.headers else "")

    return ", ".join(f"{count} x {what}" for what, count in Counter(map(kind, answers)).items())


def rows() -> Iterator[tuple[str, Callable[[Contender], Awaitable[str]]]]:
    """Yield what is measured, by the name of its row."""
    yield "short steps per thousand", short_steps
    for calls in (10, 100, 1000, 5000):
        yield (
            f"a turn's time beyond its {1e3 * WORK_SECONDS:.0f} ms, {calls:,} waiting",
            partial(over_the_limit, calls=calls),
        )
    yield "the same, of 8 clients in a loop", in_a_loop
    yield "memory per waiting caller", memory
    yield "time lost to 20 that hung up, in turns", turns_lost
    yield f"20 callers where {BOUND} may wait", beyond_the_bound
    yield "SIGTERM: 1 running, 5 waiting", stop


def print_row(*cells: str) -> None:
    print("|", " | ".join(cells), "|", flush=True)


async def main() -> None:
    print_row("", *CONTENDERS)
    print_row("---", *("---" for _ in CONTENDERS))
    for name, measure in rows():
        cells = []
        for contender in CONTENDERS:
            if contender.startswith("HAProxy") and not shutil.which("haproxy"):
                cells.append("not installed")
            else:
                cells.append(await measure(CONTENDERS[contender]))
        print_row(name, *cells)


if __name__ == "__main__":
    with exit_if_invalid():
        require(AMPLE)  # raises the limit on open files, which the servers inherit
    asyncio.run(main())
