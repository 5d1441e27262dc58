"""The gate: one caller inside, the rest in line, in order of arrival.

It knows nothing of HTTP.
All times are seconds on one monotonic clock, which is handed in.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from math import inf

SIMULTANEOUS = 0.26
"""Seconds within which requests arrive that get an exact step, a quarter of a turn at most.

The promise is 0.25 s, since people's bursts reach a gateway that far apart, or a fifth of a turn,
since clients in a loop come a turn apart and are not to be held to a step.
The rest is for timestamps of arrival, which cross two clocks and jitter by milliseconds.
"""


class GateFull(Exception):
    """Raised when the line is as long as it may be; the line is unchanged."""


class GateClosed(Exception):
    """Raised when the gate closed before the caller's turn, or its turn was then cancelled.

    Its place is free.
    """


class GateLate(Exception):
    """Raised when the caller's turn did not begin in time; its place in line is free."""


class CallerGone(Exception):
    """Raised when the caller left before its turn; its place in line is free."""


@dataclass(slots=True)
class Turn:
    """One caller's turn: when it arrived, began and ended, in seconds on the gate's clock.

    Only a turn that is complete has `ended`, and so an `elapsed`.
    """

    arrived: float
    began: float
    ended: float = field(init=False, repr=False)

    @property
    def elapsed(self) -> float:
        """Seconds from arrival to the end of the turn: the answer, exactly as it is sent."""
        return self.ended - self.arrived


class Gate:
    """Lets callers in one at a time, each for at least `seconds`.

    At most `max_waiting` callers stand in line beside the one inside, each of them until
    `max_wait_seconds` after its arrival, or for as long as it likes where that is None.
    `clock` counts seconds and never steps back; an event loop's own clock will not do,
    since uvloop caches its clock and rounds it to milliseconds.
    """

    __slots__ = (
        "_clock",
        "_closed",
        "_last",
        "_line",
        "_lock",
        "_max_wait_seconds",
        "_max_waiting",
        "_seconds",
        "_simultaneous",
    )

    def __init__(
        self,
        seconds: float,
        max_waiting: int,
        max_wait_seconds: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._seconds = seconds
        self._simultaneous = min(SIMULTANEOUS, seconds / 4)
        self._max_waiting = max_waiting
        self._max_wait_seconds = inf if max_wait_seconds is None else max_wait_seconds
        self._clock = clock
        self._lock = asyncio.Lock()
        self._line: set[asyncio.Timeout] = set()
        self._last: Turn | None = None
        self._closed = False

    def __repr__(self) -> str:
        state = "closed" if self._closed else "open"
        inside = "one inside" if self._lock.locked() else "none inside"
        return f"<Gate {state}, {inside}, {self.waiting} of {self._max_waiting} waiting>"

    @property
    def waiting(self) -> int:
        """How many callers stand in line."""
        return len(self._line)

    @property
    def full(self) -> bool:
        """Whether the next caller would be refused, since the line is as long as it may be."""
        return not self._closed and self.waiting + self._lock.locked() > self._max_waiting

    @asynccontextmanager
    async def turn(self, arrived: float, gone: asyncio.Future[None]) -> AsyncIterator[Turn]:
        """Wait in line, then hold the gate for the body and until its answer is exact.

        `arrived` is when the call arrived, in seconds on the gate's clock.
        `gone` is done when the caller has left, which is of interest only while it is in line.
        The turn is complete, and its `elapsed` is the answer, once the context is left.

        Raises `GateFull` at once when the line is full, and `GateClosed`, `CallerGone` or
        `GateLate` when the gate is closed, the caller leaves or its time is over before the turn
        begins; `GateClosed`, too, when the body is cancelled after the gate was closed.
        A caller that is cancelled in line loses its place; one whose body raises, or is
        cancelled inside, gives the gate to the next at once and leaves no answer behind.
        """
        if self._closed:
            raise GateClosed
        if self.full:
            raise GateFull
        deadline = arrived + self._max_wait_seconds
        await self._wait(gone, deadline)
        try:
            if self._closed:
                raise GateClosed
            turn = Turn(arrived, began=self._clock())
            if turn.began > deadline:
                raise GateLate
            yield turn
            await self._complete(turn)
        except asyncio.CancelledError:
            if self._closed:
                raise GateClosed from None
            raise
        finally:
            self._lock.release()

    def close(self) -> None:
        """Send away those in line and take no one more; who is inside finishes."""
        self._closed = True
        for place in self._line.copy():
            self._send_away(place)

    async def _wait(self, gone: asyncio.Future[None], deadline: float) -> None:
        # The lock is fair, and passes the gate on when one it was just granted to is cancelled.
        patience = None if deadline == inf else deadline - self._clock()
        try:
            async with asyncio.timeout(patience) as place:
                self._line.add(place)
                gone.add_done_callback(lambda _: self._send_away(place))
                try:
                    await self._lock.acquire()
                finally:
                    self._line.discard(place)
        except TimeoutError:
            if self._closed:
                raise GateClosed from None
            raise (CallerGone if gone.done() else GateLate) from None

    def _send_away(self, place: asyncio.Timeout) -> None:
        if place in self._line and not place.expired():
            self._line.discard(place)
            place.reschedule(-inf)

    async def _complete(self, turn: Turn) -> None:
        # A loop's timers may end early, and an answer's elapsed is measured from its own arrival:
        # so stay until the step, computed as its callers will, is long enough. Then, of the floats,
        # elapsed >= earlier + seconds as well: earlier is at least seconds, so that near the step
        # the difference is exact (Sterbenz's lemma).
        seconds, last = self._seconds, self._last
        earlier = -inf
        if last and turn.arrived < last.ended and turn.arrived - last.arrived <= self._simultaneous:
            earlier = last.elapsed
        while True:
            now = self._clock()
            short = max(seconds - (now - turn.began), seconds - (now - turn.arrived - earlier))
            if short <= 0:
                break
            await asyncio.sleep(short)
        turn.ended = now
        self._last = turn
