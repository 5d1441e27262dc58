"""The attacks, of any size; each returns what was seen."""

import asyncio
import json
import os
import random
import signal
import time
from collections import Counter
from itertools import pairwise
from typing import Any

from tests.siege.flood import Withstood, withstand
from tests.support.callers import Caller
from tests.support.server import LIMIT, PYTHON_M, UVICORN, Server, resident_memory, serve
from tests.support.step import is_short

OBSERVED = (*UVICORN, "--no-access-log", "--loop", "uvloop", "tests.siege.observed:app")


def descriptors(server: Server) -> int:
    """Count the server's open file descriptors."""
    return len(os.listdir(f"/proc/{server.process.pid}/fd"))


async def observe(server: Server) -> dict[str, Any]:
    """Return what the server tells of itself."""
    caller = await Caller.call(server.url, "/observed")
    report: dict[str, Any] = json.loads((await caller.answer()).body)
    return report


async def rush(server: Server, callers: int, seconds: float) -> tuple[int, int, int]:
    """Let so many call, and a random half of them hang up at a random moment.

    Returns how many were answered 200, of how many that stayed, and how many of the steps between
    simultaneous answers were short of `seconds`.
    """
    chance = random.Random(callers)
    answers: list[tuple[float, float]] = []

    async def call(stays: bool) -> None:
        stamp = time.time()
        caller = await Caller.call(server.url, headers=f"X-Request-Start: t={stamp:.6f}\r\n")
        if not stays:
            await asyncio.sleep(chance.uniform(0, 0.6 * callers * seconds))
            await caller.hang_up()
            return
        answer = await caller.answer()
        assert answer.status == 200
        answers.append((stamp, json.loads(answer.body)["elapsed"]))

    staying = [chance.random() < 0.5 for _ in range(callers)]
    await asyncio.gather(*map(call, staying))
    short = sum(
        is_short(one[1], other[1], seconds)
        for one, other in pairwise(answers)
        if abs(other[0] - one[0]) <= 0.25
    )
    return len(answers), sum(staying), short


async def crowd(callers: int) -> dict[str, Any]:
    """Rush the service twice; return what was seen, and what the second time left behind."""
    seconds = 0.005
    settings = {
        "WORK_SECONDS": str(seconds),
        "MAX_WAITING": str(callers),
        "TRUST_REQUEST_START": "true",
    }
    with serve(*OBSERVED, **settings) as server:
        idle_descriptors = descriptors(server)
        idle_tasks = (await observe(server))["tasks"]
        idle_memory = resident_memory(server.process.pid)
        await rush(server, callers, seconds)
        settled = resident_memory(server.process.pid)
        answered, stayed, short = await rush(server, callers, seconds)
        for _ in range(100):  # the server closes a connection some passes after its caller
            report = await observe(server)
            if descriptors(server) == idle_descriptors and report["tasks"] == idle_tasks:
                break
        return {
            "callers": callers,
            "stayed": stayed,
            "answered": answered,
            "short steps": short,
            "most at once": report["most_inside"],
            "in order": report["in_order"],
            "tasks left": report["tasks"] - idle_tasks,
            "descriptors left": descriptors(server) - idle_descriptors,
            "memory before": idle_memory,
            "memory after the first rush": settled,
            "memory after the second": resident_memory(server.process.pid),
        }


async def stop_at_random(moment: random.Random) -> Counter[str]:
    """Tell the service to stop at a random moment of a burst; count what its callers get."""
    with serve(*OBSERVED, WORK_SECONDS="0.05") as server:

        async def call(after: float) -> str:
            await asyncio.sleep(after)
            try:
                caller = await Caller.call(server.url)
                return str((await caller.answer()).status)
            except (ConnectionError, asyncio.IncompleteReadError) as error:
                return type(error).__name__

        async def stop(after: float) -> None:
            await asyncio.sleep(after)
            server.process.send_signal(signal.SIGTERM)

        calls = [call(moment.uniform(0, 0.1)) for _ in range(30)]
        told, *_ = await asyncio.gather(asyncio.gather(*calls), stop(moment.uniform(0, 0.5)))
        outcomes = Counter(told)
        outcomes[f"exit {server.process.wait(LIMIT)}"] += 1
        return outcomes


async def flooded(connections: int, newcomers: int) -> Withstood:
    """Flood what the README's command runs."""
    with serve(*PYTHON_M, PORT="0", WORK_SECONDS="1", MAX_WAITING="4") as server:
        return await withstand(server, connections, newcomers)
