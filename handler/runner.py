"""How the work runs: an `async def` in the event loop, a plain `def` in a thread of its own.

The thread is always the same one: a library that belongs to the thread that opened it, such as
sqlite3, works, and two calls never overlap, even if a request is cancelled while its work goes on.
"""

import asyncio
import inspect
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from contextvars import copy_context
from functools import partial
from queue import SimpleQueue
from threading import Thread

Work = Callable[[float], object]
Outcome = Future[tuple[object, BaseException | None]]


class WorkFailed(Exception):
    """Raised in place of what the work raised, where that would end more than a request."""


class Runner:
    """Runs one app's work."""

    def __init__(self, work: Work) -> None:
        call = getattr(work, "__call__", work)  # noqa: B004 - an object's, if it is no function
        self._work = work
        self._blocks = not (inspect.iscoroutinefunction(work) or inspect.iscoroutinefunction(call))
        self._calls: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._thread: Thread | None = None
        weakref.finalize(self, self._calls.put, None)

    async def run(self, seconds: float) -> object:
        """Call the work with `seconds`, wait for its end and return its value.

        Raises what it raises, or `WorkFailed`. When this is cancelled, an `async def` is, too; a
        thread goes on, nothing but the next call waits for it, and it does not keep the process.
        """
        value = await self._in_thread(seconds) if self._blocks else self._work(seconds)
        if not inspect.isawaitable(value):
            return value
        try:
            return await value
        except (Exception, GeneratorExit):
            raise
        except BaseException as error:
            task = asyncio.current_task()
            if isinstance(error, asyncio.CancelledError) and task and task.cancelling():
                raise
            raise WorkFailed(repr(error)) from error

    async def _in_thread(self, seconds: float) -> object:
        if self._thread is None:
            # Executors' threads, when they hang, keep the process from exiting.
            self._thread = Thread(target=_serve, args=[self._calls], name="work", daemon=True)
            self._thread.start()
        outcome: Outcome = Future()
        outcome.set_running_or_notify_cancel()
        self._calls.put(partial(copy_context().run, self._call, seconds, outcome))
        value, error = await asyncio.wrap_future(outcome)
        if error is None:
            return value
        if isinstance(error, Exception) and not isinstance(error, StopIteration):
            raise error
        raise WorkFailed(repr(error)) from error

    def _call(self, seconds: float, outcome: Outcome) -> None:
        # A future's own exception cannot be every one, and Python 3.11 replaces a TimeoutError.
        try:
            outcome.set_result((self._work(seconds), None))
        except BaseException as error:
            outcome.set_result((None, error))


def _serve(calls: "SimpleQueue[Callable[[], None] | None]") -> None:
    while call := calls.get():
        call()
        del call  # with the last reference to its runner, this ends
