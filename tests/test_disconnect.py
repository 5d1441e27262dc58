"""Noticing that a caller hung up."""

import asyncio

import pytest
from starlette.types import Message

from handler.disconnect import Disconnected, while_connected
from tests.support.virtual_time import after_passes

REQUEST: Message = {"type": "http.request", "body": b"", "more_body": False}
DISCONNECT: Message = {"type": "http.disconnect"}


@pytest.fixture
def messages() -> "asyncio.Queue[Message]":
    queue: asyncio.Queue[Message] = asyncio.Queue()
    queue.put_nowait(REQUEST)
    return queue


async def test_connected(messages: "asyncio.Queue[Message]") -> None:
    """As long as the caller stays, the body runs to its end, and the watch ends with it."""
    async with while_connected(messages.get):
        await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_disconnected(messages: "asyncio.Queue[Message]") -> None:
    """When the caller leaves, the body is cancelled where it awaits."""
    messages.put_nowait(DISCONNECT)
    with pytest.raises(Disconnected):
        async with asyncio.timeout(5), while_connected(messages.get):
            await asyncio.Event().wait()


@pytest.mark.parametrize("hangs_up", range(6))
@pytest.mark.parametrize("granted", range(6))
async def test_unwatched(hangs_up: int, granted: int, messages: "asyncio.Queue[Message]") -> None:
    """A body that got as far as to end the watch is finished, were the hang-up just noticed.

    Both come after so many passes of the loop.
    """
    gate: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def grant() -> None:
        if not gate.done():
            gate.set_result(None)

    body = []
    try:
        async with while_connected(messages.get) as unwatch:
            after_passes(granted, grant)
            after_passes(hangs_up, lambda: messages.put_nowait(DISCONNECT))
            await gate
            unwatch()
            body.append("begun")
            for _ in range(6):
                await asyncio.sleep(0)
            body.append("finished")
    except Disconnected:
        body.append("disconnected")
    assert body in (["begun", "finished"], ["disconnected"])


async def test_errors_pass(messages: "asyncio.Queue[Message]") -> None:
    """An error of the body comes out unchanged, a TimeoutError of its own included."""
    with pytest.raises(TimeoutError, match="mine"):
        async with while_connected(messages.get):
            raise TimeoutError("mine")
