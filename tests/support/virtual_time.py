"""An event loop on virtual time: when nothing is left to do, its clock jumps to the next timer."""

import asyncio
import selectors
from asyncio import TimerHandle
from collections.abc import Callable
from contextvars import Context
from functools import partial
from typing import Any, TypeVarTuple

import pytest

from handler import app
from handler.arrival import arrival
from handler.gate import Gate

TICK = 1e-5
"""Seconds that an iteration of the loop takes, so that no wait, however short, lasts for ever."""

Ts = TypeVarTuple("Ts")


class JumpingSelector(selectors.DefaultSelector):
    """A selector that does not wait, but advances its clock `now`."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        events = super().select(0)
        if not events:
            if timeout is None:
                raise RuntimeError("all tasks wait, and no timer is set")
            self.now += max(timeout, TICK)
        return events


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """`time()` counts virtual seconds from 0.

    Every timer goes off `timer_error()` seconds late, or early where that is below 0.
    """

    def __init__(self, timer_error: Callable[[], float] = lambda: 0.0) -> None:
        self._jumping = JumpingSelector()
        self._timer_error = timer_error
        super().__init__(self._jumping)

    def time(self) -> float:
        return self._jumping.now

    def jump(self, seconds: float) -> None:
        """Let time pass in which nothing runs."""
        self._jumping.now += seconds

    def call_at(
        self,
        when: float,
        callback: Callable[[*Ts], object],
        *args: *Ts,
        context: Context | None = None,
    ) -> TimerHandle:
        return super().call_at(when + self._timer_error(), callback, *args, context=context)


def app_on_virtual_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make apps that are created from now on read the running loop's clock."""
    clock = asyncio.get_running_loop().time
    monkeypatch.setattr(app, "Gate", partial(Gate, clock=clock))
    monkeypatch.setattr(app, "arrival", partial(arrival, clock=clock))


def after_iterations(n: int, callback: Callable[[], object]) -> None:
    """Call `callback` after `n` iterations of the running loop, immediately if `n` is 0."""
    if n:
        asyncio.get_running_loop().call_soon(after_iterations, n - 1, callback)
    else:
        callback()


def run(main: Any, timer_error: Callable[[], float] = lambda: 0.0) -> Any:
    """Run the coroutine `main` in a virtual-time loop of its own and return what it returns."""
    with asyncio.Runner(loop_factory=lambda: VirtualTimeLoop(timer_error)) as runner:
        return runner.run(main)
