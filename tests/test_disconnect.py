"""Noticing that a caller hung up."""

import asyncio

import pytest
from starlette.types import Message

from handler.disconnect import Disconnected, while_connected

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
        async with while_connected(messages.get):
            await asyncio.Event().wait()


async def test_disconnected_afterwards(messages: "asyncio.Queue[Message]") -> None:
    """A caller that leaves once the body is done disturbs nothing."""
    async with while_connected(messages.get):
        pass
    messages.put_nowait(DISCONNECT)
    await asyncio.sleep(0)


async def test_errors_pass(messages: "asyncio.Queue[Message]") -> None:
    """An error of the body comes out unchanged, a TimeoutError of its own included."""
    with pytest.raises(TimeoutError, match="mine"):
        async with while_connected(messages.get):
            raise TimeoutError("mine")
