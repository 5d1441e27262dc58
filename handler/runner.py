"""How the work runs: an `async def` in the event loop, a plain `def` in a thread."""

import asyncio
import inspect
from collections.abc import Callable
from concurrent.futures import Future
from contextvars import copy_context
from threading import Thread
from typing import Any

Work = Callable[[float], object]


async def do(work: Work, seconds: float) -> None:
    """Call `work(seconds)` and wait for its end; raises what it raises.

    When this is cancelled, an `async def` is, too; a thread goes on, and nothing waits for it.
    """
    call = getattr(work, "__call__", work)  # noqa: B004 - an object's, if it is no function
    if inspect.iscoroutinefunction(work) or inspect.iscoroutinefunction(call):
        result = work(seconds)
    else:
        result = await _in_thread(work, seconds)
    if inspect.isawaitable(result):
        await result


async def _in_thread(work: Work, seconds: float) -> object:
    # Not by run_in_threadpool or asyncio.to_thread: their threads, when they hang, keep the process
    # from exiting.
    outcome: Future[tuple[Any, BaseException | None]] = Future()
    outcome.set_running_or_notify_cancel()

    def run() -> None:
        try:
            outcome.set_result((work(seconds), None))
        except BaseException as error:
            outcome.set_result((None, error))

    Thread(target=copy_context().run, args=[run], name="work", daemon=True).start()
    result, error = await asyncio.wrap_future(outcome)
    if error:
        raise error  # here: a future takes no StopIteration
    return result
