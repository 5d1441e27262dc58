"""The gate: one request inside, the rest queued, in order of arrival.

It knows nothing of HTTP.
All times are seconds on one monotonic clock, which is handed in.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from math import inf

SIMULTANEOUS_SECONDS = 0.26
"""Requests that arrive within this many seconds of each other get an exact step.

It is a quarter of a turn, if that is less: clients in a loop come a turn apart, and are not held to
a step. The promise is 0.25 s, or a fifth of a turn: people's bursts reach a gateway that far apart,
and timestamps of arrival cross two clocks and jitter by milliseconds.
"""


class Rejected(Exception):
    """Raised instead of a turn; the request has no slot in the queue, and nothing else changed."""


class QueueFull(Rejected):
    """Raised immediately when the queue is full."""


class WaitTimeout(Rejected):
    """Raised when a turn did not begin in time."""


class GateClosed(Rejected):
    """Raised when the gate closed before a turn began, or a turn is cancelled after that."""


class ClientDisconnected(Rejected):
    """Raised when a client disconnected before its turn."""


@dataclass(slots=True)
class Turn:
    """A request's time inside the gate, in seconds on the gate's clock; `arrived` is before it.

    Only a complete turn has `ended`, and so an `elapsed`.
    """

    arrived: float
    began: float
    ended: float = field(init=False, repr=False)

    @property
    def elapsed(self) -> float:
        """Seconds from arrival to the end of the turn, exactly as they are sent."""
        return self.ended - self.arrived


class Gate:
    """Lets requests in one at a time, each for at least `seconds`.

    At most `max_waiting` requests wait, not counting the one inside, each of them until
    `max_wait_seconds` after its arrival, or without limit where that is None.
    `clock` counts seconds and never steps back. Don't use an event loop's: uvloop caches its clock
    and rounds it to milliseconds.
    """

    __slots__ = (
        "_clock",
        "_closed",
        "_last",
        "_lock",
        "_max_wait_seconds",
        "_max_waiting",
        "_seconds",
        "_simultaneous",
        "_waiters",
    )

    def __init__(
        self,
        seconds: float,
        max_waiting: int,
        max_wait_seconds: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._seconds = seconds
        self._simultaneous = min(SIMULTANEOUS_SECONDS, seconds / 4)
        self._max_waiting = max_waiting
        self._max_wait_seconds = inf if max_wait_seconds is None else max_wait_seconds
        self._clock = clock
        self._lock = asyncio.Lock()
        self._waiters: set[asyncio.Timeout] = set()
        self._last: Turn | None = None
        self._closed = False

    def __repr__(self) -> str:
        state = "closed" if self._closed else "open"
        inside = "one inside" if self._lock.locked() else "none inside"
        return f"<Gate {state}, {inside}, {self.waiting} of {self._max_waiting} waiting>"

    @property
    def waiting(self) -> int:
        """How many requests wait."""
        return len(self._waiters)

    @property
    def full(self) -> bool:
        """Whether the next request would be rejected because the queue is full."""
        return not self._closed and self.waiting + self._lock.locked() > self._max_waiting

    @asynccontextmanager
    async def turn(self, arrived: float, gone: asyncio.Future[None]) -> AsyncIterator[Turn]:
        """Wait in the queue, then hold the gate for the body and until `elapsed` is exact.

        `arrived` is when the request arrived, in seconds on the gate's clock.
        `gone` is done when the client has disconnected, which matters only while it waits.
        The turn is complete, and has its `elapsed`, once the context is left.

        Raises a `Rejected`: `QueueFull` immediately, and `GateClosed`, `ClientDisconnected` or
        `WaitTimeout` when the gate closes, the client disconnects or its deadline passes before the
        turn begins; `GateClosed` also when the body is cancelled after the gate was closed.
        When the wait is cancelled, its slot is free; when the body raises or is cancelled, the
        next turn begins immediately, and no later step is measured from this one.
        """
        if self._closed:
            raise GateClosed
        if self.full:
            raise QueueFull
        deadline = arrived + self._max_wait_seconds
        await self._wait(gone, deadline)
        try:
            if self._closed:
                raise GateClosed
            turn = Turn(arrived, began=self._clock())
            if turn.began > deadline:
                raise WaitTimeout
            yield turn
            await self._complete(turn)
        except asyncio.CancelledError:
            if self._closed:
                raise GateClosed from None
            raise
        finally:
            self._lock.release()

    def close(self) -> None:
        """Reject all that wait and all that arrive; the request inside finishes."""
        self._closed = True
        for waiter in self._waiters:
            self._stop_waiting(waiter)

    async def _wait(self, gone: asyncio.Future[None], deadline: float) -> None:
        # The lock is fair, and wakes the next waiter when one that it just woke is cancelled.
        timeout = None if deadline == inf else deadline - self._clock()
        try:
            async with asyncio.timeout(timeout) as waiter:
                self._waiters.add(waiter)
                gone.add_done_callback(lambda _: self._stop_waiting(waiter))
                try:
                    await self._lock.acquire()
                finally:
                    self._waiters.discard(waiter)
        except TimeoutError:
            if self._closed:
                raise GateClosed from None
            raise (ClientDisconnected if gone.done() else WaitTimeout) from None

    def _stop_waiting(self, waiter: asyncio.Timeout) -> None:
        if waiter in self._waiters and not waiter.expired():
            waiter.reschedule(-inf)

    async def _complete(self, turn: Turn) -> None:
        # Timers may fire early, and each `elapsed` counts from its own arrival: hold the turn until
        # the step, computed as a client would, is long enough. Then `elapsed >= earlier + seconds`
        # holds, too: `earlier >= seconds`, so the subtraction is exact near the step (Sterbenz's
        # lemma).
        seconds, last = self._seconds, self._last
        earlier = -inf
        # A request that came after the last response came more than a turn after the last request:
        # outside the window.
        if last and turn.arrived - last.arrived <= self._simultaneous:
            earlier = last.elapsed
        while True:
            now = self._clock()
            remaining = max(seconds - (now - turn.began), seconds - (now - turn.arrived - earlier))
            if remaining <= 0:
                break
            await asyncio.sleep(remaining)
        turn.ended = now
        self._last = turn
