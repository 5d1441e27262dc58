"""Work of the tests' own: a sleep of both kinds, which tells what went before it."""

import asyncio
import time


class Sleep:
    """Sleeps, and returns how many works had begun before it, and how many of those had ended."""

    def __init__(self) -> None:
        self.begun = self.ended = 0

    async def __call__(self, seconds: float) -> tuple[int, int]:
        before = (self.begun, self.ended)
        self.begun += 1
        await asyncio.sleep(seconds)
        self.ended += 1
        return before


class BlockingSleep(Sleep):
    def __call__(self, seconds: float) -> tuple[int, int]:  # type: ignore[override]
        before = (self.begun, self.ended)
        self.begun += 1
        time.sleep(seconds)
        self.ended += 1
        return before
