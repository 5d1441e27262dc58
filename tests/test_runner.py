"""How work of every kind runs."""

import asyncio
import threading
import time
from contextvars import ContextVar
from functools import partial

import pytest

from handler.runner import Work, do

ran: list[tuple[threading.Thread, float]] = []
context = ContextVar("context", default="none")


def note(seconds: float) -> None:
    ran.append((threading.current_thread(), seconds))


async def coroutine(seconds: float) -> None:
    await asyncio.sleep(0)
    note(seconds)


class Coroutine:
    async def __call__(self, seconds: float) -> None:
        await coroutine(seconds)


class Function:
    def __call__(self, seconds: float) -> None:
        note(seconds)


IN_THE_LOOP: dict[str, Work] = {
    "async def": coroutine,
    "partial": partial(coroutine),
    "object": Coroutine(),
    "def that returns an awaitable": lambda seconds: coroutine(seconds),
}
IN_A_THREAD: dict[str, Work] = {"def": note, "partial": partial(note), "object": Function()}


@pytest.mark.parametrize("work", IN_THE_LOOP.values(), ids=IN_THE_LOOP)
async def test_in_the_loop(work: Work) -> None:
    """Work that is awaitable is awaited in the event loop."""
    ran.clear()
    await do(work, 1.5)
    assert ran == [(threading.main_thread(), 1.5)]


@pytest.mark.parametrize("work", IN_A_THREAD.values(), ids=IN_A_THREAD)
async def test_in_a_thread(work: Work) -> None:
    """A plain function runs in a thread, which does not keep the process from exiting."""
    ran.clear()
    await do(work, 1.5)
    [(thread, seconds)] = ran
    assert seconds == 1.5
    assert thread is not threading.main_thread()
    assert thread.daemon


async def test_the_loop_goes_on() -> None:
    """While a thread blocks, the event loop keeps running."""
    go = threading.Event()
    asyncio.get_running_loop().call_later(0.01, go.set)
    await do(lambda seconds: go.wait(10) or pytest.fail("blocked"), 0)


async def test_context() -> None:
    """A thread has the request's context variables, as in FastAPI."""
    context.set("request")
    seen: list[str] = []
    await do(lambda seconds: seen.append(context.get()), 0)
    assert seen == ["request"]


def fail(error: BaseException) -> Work:
    def work(seconds: float) -> None:
        raise error

    return work


@pytest.mark.parametrize("error", [ZeroDivisionError("mine"), TimeoutError(), KeyError(1)])
async def test_failure(error: Exception) -> None:
    """What the work raises is raised unchanged."""
    with pytest.raises(type(error)) as raised:
        await do(fail(error), 0)
    assert raised.value is error


async def test_stop_iteration() -> None:
    """StopIteration, which a future cannot hold, ends the work as a RuntimeError."""
    with pytest.raises(RuntimeError, match="StopIteration"):
        await do(fail(StopIteration()), 0)


async def test_cancel() -> None:
    """When the work is cancelled, nothing waits for its thread, which may end at any time."""
    go, ended = threading.Event(), threading.Event()

    def work(seconds: float) -> None:
        go.wait()
        ended.set()

    task = asyncio.create_task(do(work, 0))
    await asyncio.sleep(0.01)
    began = time.monotonic()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert time.monotonic() - began < 1
    go.set()
    assert await asyncio.to_thread(ended.wait, 10)
