"""How work of every kind runs."""

import asyncio
import threading
from contextvars import ContextVar
from functools import partial

import pytest

from handler.runner import Runner, Work, WorkFailed
from tests.support.server import LIMIT

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
    await Runner(work).run(1.5)
    assert ran == [(threading.main_thread(), 1.5)]


@pytest.mark.parametrize("work", IN_A_THREAD.values(), ids=IN_A_THREAD)
async def test_in_a_thread(work: Work) -> None:
    """A plain function runs in a thread, always the same, which does not keep the process."""
    ran.clear()
    runner = Runner(work)
    for _ in range(3):
        await runner.run(1.5)
    assert len(ran) == 3
    [(thread, seconds)] = set(ran)
    assert seconds == 1.5
    assert thread is not threading.main_thread()
    assert thread.daemon


async def test_the_thread_ends() -> None:
    """With its runner, a thread ends: apps that are thrown away leave nothing running."""
    ran.clear()
    await Runner(note).run(1.5)
    [(thread, _)] = ran
    await asyncio.to_thread(thread.join, LIMIT)
    assert not thread.is_alive()


async def test_the_loop_goes_on() -> None:
    """While a thread blocks, the event loop keeps running."""
    go = threading.Event()
    asyncio.get_running_loop().call_later(0.01, go.set)
    assert await Runner(lambda seconds: go.wait(LIMIT)).run(0)


async def test_context() -> None:
    """A thread has the request's context variables, as in FastAPI."""
    context.set("request")
    assert await Runner(lambda seconds: context.get()).run(0) == "request"


def in_both(error: BaseException) -> list[Work]:
    """Return work of both kinds that raises `error`."""

    def blocking(seconds: float) -> None:
        raise error

    async def awaited(seconds: float) -> None:
        raise error

    return [blocking, awaited]


@pytest.mark.parametrize("kind", [0, 1], ids=["def", "async def"])
@pytest.mark.parametrize("error", [ZeroDivisionError("mine"), TimeoutError(), KeyError(1)])
async def test_failure(error: Exception, kind: int) -> None:
    """What the work raises is raised unchanged."""
    with pytest.raises(type(error)) as raised:
        await Runner(in_both(error)[kind]).run(0)
    assert raised.value is error


@pytest.mark.parametrize("kind", [0, 1], ids=["def", "async def"])
@pytest.mark.parametrize(
    "error",
    [
        SystemExit(1),
        KeyboardInterrupt(),
        asyncio.CancelledError(),
        BaseExceptionGroup("", [SystemExit()]),
    ],
)
async def test_no_exception(error: BaseException, kind: int) -> None:
    """What would end the server, or looks like a cancelled request, fails as an exception."""
    with pytest.raises(WorkFailed) as raised:
        await Runner(in_both(error)[kind]).run(0)
    assert raised.value.__cause__ is error


@pytest.mark.parametrize("error", [StopIteration(1), GeneratorExit()])
async def test_no_exception_in_a_thread(error: BaseException) -> None:
    """What a future cannot hold, or a coroutine not raise, fails as an exception."""
    with pytest.raises(WorkFailed) as raised:
        await Runner(in_both(error)[0]).run(0)
    assert raised.value.__cause__ is error


async def test_a_cancelled_task_in_the_work() -> None:
    """A task that the work awaits, and that somebody cancelled, does not cancel the request."""

    async def work(seconds: float) -> None:
        task = asyncio.create_task(asyncio.sleep(1))
        task.cancel()
        await task

    with pytest.raises(WorkFailed):
        await Runner(work).run(0)


async def test_cancel() -> None:
    """When an `async def` is cancelled, it is told so, and that is raised."""
    told = []

    async def work(seconds: float) -> None:
        try:
            await asyncio.sleep(LIMIT)
        except asyncio.CancelledError:
            told.append(True)
            raise

    task = asyncio.create_task(Runner(work).run(0))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert told


async def test_cancel_a_thread() -> None:
    """When a `def` is cancelled, nothing waits for its thread but the next call."""
    go = threading.Event()
    calls: list[str] = []

    def work(seconds: float) -> None:
        calls.append("begun")
        go.wait(LIMIT)
        calls.append("ended")

    runner = Runner(work)
    task = asyncio.create_task(runner.run(0))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    after = asyncio.create_task(runner.run(0))
    await asyncio.sleep(0.01)
    assert "ended" not in calls
    go.set()
    await after
    assert calls == ["begun", "ended"] * 2
