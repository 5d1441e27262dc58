"""The Lambda handler, for the runtime emulator: an event can ask for work that fails or hangs."""

import asyncio
from typing import Any

from mangum.types import LambdaContext

from handler import app, main

work = app.work


async def fail(seconds: float) -> None:
    raise ZeroDivisionError("the work failed")


async def hang(seconds: float) -> None:
    await asyncio.Event().wait()


def handler(event: dict[str, Any], context: LambdaContext) -> dict[str, Any]:
    troubles = {"fail": fail, "hang": hang}
    app.work = troubles.get(event.get("headers", {}).get("X-Trouble"), work)
    return main.handler(event, context)
