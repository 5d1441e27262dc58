"""Apps whose work is not the one in `handler/work.py`: `uvicorn tests.support.apps:NAME`."""

import asyncio
import os
import threading
import time
from contextlib import ExitStack

from handler.app import create_app
from handler.settings import Settings
from tests.support.sleep import BlockingSleep, Sleep


async def hang(seconds: float) -> None:
    await asyncio.Event().wait()


def hang_in_a_thread(seconds: float) -> None:
    threading.Event().wait()


def open_files(seconds: float) -> None:
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        with ExitStack() as files:
            for _ in range(5):
                files.enter_context(open(os.devnull))


settings = Settings.load()
sleeping = create_app(settings, Sleep())
in_a_thread = create_app(settings, BlockingSleep())
hanging = create_app(settings, hang)
hanging_in_a_thread = create_app(settings, hang_in_a_thread)
opening_files = create_app(settings, open_files)
