"""The app: the one route, its responses and what can go wrong."""

import asyncio
import logging
import math
import time
from contextlib import suppress
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from starlette.types import Receive, Scope, Send

from handler.arrival import arrival
from handler.gate import (
    ClientDisconnected,
    Gate,
    GateClosed,
    QueueFull,
    Rejected,
    WaitTimeout,
)
from handler.runner import Runner, Work
from handler.settings import Settings
from handler.work import work as default_work

CLIENT_CLOSED_REQUEST = 499
"""nginx's status for a client that disconnected: there is no one to see it."""

NO_STORE = {"Cache-Control": "no-store"}
"""A CDN may otherwise keep the response to a GET for a day."""

logger = logging.getLogger("uvicorn.error")


class Result(BaseModel):
    elapsed: float = Field(
        description="Seconds from the arrival of the request to the end of its work.",
        examples=[6.001],
    )
    result: Any = Field(default=None, description="What the work returned, if anything.")


class Error(BaseModel):
    detail: str = Field(
        description="What is wrong, and what to do.",
        examples=["The queue is full (100 waiting); try again in 3 s."],
    )


RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The work is done.",
        "headers": {
            "Server-Timing": {
                "description": "How long the request was queued, and worked on: milliseconds.",
                "schema": {"type": "string"},
            }
        },
    },
    500: {
        "description": "The work failed.",
        "content": {"application/json": {"example": {"detail": "Internal Server Error"}}},
        "model": Error,
    },
    503: {
        "description": (
            "The queue is full, the request waited too long, there are too many connections, or "
            "the service is shutting down."
        ),
        "headers": {
            "Retry-After": {
                "description": "Seconds after which to try again.",
                "schema": {"type": "integer"},
            }
        },
        "model": Error,
    },
}


async def disconnected(receive: Receive) -> None:
    """Return when the client has disconnected; the request's body is read and dropped."""
    with suppress(Exception):  # a middleware's, such as a limit on the body
        while (await receive())["type"] != "http.disconnect":
            pass
        return
    await asyncio.Event().wait()


def log_disconnect(request: Request, when: str) -> None:
    """Log a request that ends without a response: the access log has only the others."""
    client = ":".join(map(str, request.client or ()))
    logger.info('%s - "GET %s" client disconnected %s', client, request.url.path, when)


def create_app(settings: Settings, work: Work = default_work) -> FastAPI:
    """Make the service around `work`, with a gate of its own."""
    gate = Gate(settings.work_seconds, settings.max_waiting, settings.max_wait_seconds)
    runner = Runner(work)
    reasons = {
        QueueFull: f"The queue is full ({settings.max_waiting} waiting)",
        WaitTimeout: f"The request waited for more than {settings.max_wait_seconds or 0:g} s",
        GateClosed: "The service is shutting down",
    }

    def unavailable(reason: str, **headers: str) -> Response:
        # Within one turn a slot is likely to be free, and a service that restarts to be up.
        seconds = math.ceil(settings.work_seconds)
        return JSONResponse(
            {"detail": f"{reason}; try again in {seconds} s."},
            status_code=503,
            headers={"Retry-After": str(seconds), **NO_STORE, **headers},
        )

    full = unavailable(reasons[QueueFull])

    class Service(FastAPI):
        lifespan_ran = False

        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] == "lifespan":
                # Imported only where there is a server, which there is not on Lambda.
                from handler.server import startup_error

                self.lifespan_ran = True
                rejection = unavailable("Too many connections", Connection="close")
                if reason := await startup_error(settings, gate.close, rejection):
                    await receive()
                    await send({"type": "lifespan.startup.failed", "message": reason})
                    return
            elif (
                gate.full
                and scope.get("method") == "GET"
                and scope["path"] == f"{scope.get('root_path', '')}/test"
            ):
                # Under overload every turn and every new client waits for what rejections cost:
                # this one comes before anything is made of the request.
                headers = [*full.raw_headers]  # which middlewares may add to
                await send({"type": "http.response.start", "status": 503, "headers": headers})
                await send({"type": "http.response.body", "body": full.body})
                return
            elif not self.lifespan_ran and "aws.event" not in scope:
                from handler.server import warn_of_no_lifespan

                self.lifespan_ran = True
                warn_of_no_lifespan()
            await super().__call__(scope, receive, send)

    app = Service(
        title="One at a time",
        description="Processes requests one at a time, in order of arrival.",
        version="1",
    )

    @app.get(
        "/test",
        operation_id="run_work",
        summary="Do the work",
        responses=RESPONSES,
        response_model_exclude_defaults=True,
    )
    async def test(request: Request, response: Response) -> Result:
        """Wait for all earlier requests, do the work and return how long both took.

        Of requests that arrive simultaneously, each `elapsed` exceeds the one before by at least
        `WORK_SECONDS`, however long the work takes.
        """
        arrived = arrival(
            request.headers.get("x-request-start") if settings.trust_request_start else None
        )
        turn = None
        gone = asyncio.create_task(disconnected(request.receive))
        try:
            async with gate.turn(arrived, gone) as turn:
                value = await runner.run(settings.work_seconds)
        finally:
            if gone.done():
                waited = f"after {time.monotonic() - arrived:.3f} s in the queue"
                log_disconnect(request, "while its work was running" if turn else waited)
            gone.cancel()
        response.headers.update(NO_STORE)
        response.headers["Server-Timing"] = (
            f"queue;dur={1e3 * (turn.began - turn.arrived):.3f}, "
            f"work;dur={1e3 * (turn.ended - turn.began):.3f}"
        )
        return Result(elapsed=turn.elapsed, result=value)

    @app.exception_handler(Rejected)
    async def rejected(request: Request, error: Rejected) -> Response:
        if isinstance(error, ClientDisconnected):
            return Response(status_code=CLIENT_CLOSED_REQUEST)
        closing = {"Connection": "close"} if isinstance(error, GateClosed) else {}
        return unavailable(reasons[type(error)], **closing)

    @app.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> Response:
        return JSONResponse({"detail": "Internal Server Error"}, status_code=500)

    return app
