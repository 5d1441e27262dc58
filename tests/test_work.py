"""The default work."""

import asyncio

import pytest

from handler.work import work


@pytest.mark.virtual_time
async def test_work() -> None:
    """The default work is a sleep of the given seconds."""
    began = asyncio.get_running_loop().time()
    await work(3)
    assert asyncio.get_running_loop().time() - began == pytest.approx(3, rel=0.01)
