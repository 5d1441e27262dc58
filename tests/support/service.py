"""A uvicorn server in this process, made to keep the promises, around a response that can wait."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import cached_property
from typing import Any

import uvicorn
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from handler.server import startup_error
from handler.settings import Settings
from tests.support.clients import until


class Service:
    """At `url`, `/test` responds after `seconds` and once `may_end` is set; the rest is a 404."""

    def __init__(self, max_waiting: int, **config: Any) -> None:
        self.seconds = 0.2
        self.may_end = asyncio.Event()
        self.may_end.set()
        self.body = b"{}"
        self.requests = 0
        self.closed = False
        self._settings = Settings(max_waiting=max_waiting)
        self.server = uvicorn.Server(
            uvicorn.Config(self._app, interface="asgi3", port=0, log_config=None, **config)
        )

    async def _app(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            full = Response("Too many connections", 503, {"Connection": "close"})
            self.error = await startup_error(self._settings, self._close, full)
            kind = "failed" if self.error else "complete"
            await receive()
            await send({"type": f"lifespan.startup.{kind}"})
        elif scope["path"] == "/test":
            self.requests += 1
            await asyncio.sleep(self.seconds)
            await self.may_end.wait()
            await Response(self.body)(scope, receive, send)
        else:
            await Response(status_code=404)(scope, receive, send)

    def _close(self) -> None:
        self.closed = True

    @cached_property
    def url(self) -> str:
        [listener] = self.server.servers[0].sockets
        return f"http://127.0.0.1:{listener.getsockname()[1]}"

    async def connections(self, n: int) -> None:
        """Return once `n` connections are open."""
        await until(lambda: len(self.server.server_state.connections) == n)


@asynccontextmanager
async def serving(max_waiting: int = 100, **config: Any) -> AsyncIterator[Service]:
    """Serve, with uvicorn's options `config`, and shut down."""
    service = Service(max_waiting, **config)
    running = asyncio.create_task(service.server.serve())
    await until(lambda: service.server.started or running.done())
    yield service
    service.server.should_exit = True
    await running
