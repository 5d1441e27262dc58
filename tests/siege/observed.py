"""The service, observed from within: `GET /observed` tells what no caller can see."""

import asyncio
import itertools
import json
from contextvars import ContextVar

from starlette.types import Receive, Scope, Send

from handler.app import create_app, work
from handler.main import settings

arrivals = itertools.count()
arrival: ContextVar[int] = ContextVar("arrival")
inside = 0
most_inside = 0
last_inside = -1
in_order = True


async def observed_work(seconds: float) -> None:
    global inside, most_inside, last_inside, in_order
    inside += 1
    most_inside = max(most_inside, inside)
    in_order = in_order and arrival.get() > last_inside
    last_inside = arrival.get()
    try:
        await work(seconds)
    finally:
        inside -= 1


service = create_app(settings, observed_work)


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] != "http" or scope["path"] != "/observed":
        arrival.set(next(arrivals))
        await service(scope, receive, send)
        return
    tasks = len(asyncio.all_tasks())
    report = {"most_inside": most_inside, "in_order": in_order, "tasks": tasks}
    body = json.dumps(report).encode()
    headers = [(b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})
