"""Apps that one would write, or put a queue before, instead: for the benchmark and test_probe."""

import asyncio
import json
import os
import time
from collections.abc import Callable, Iterable
from typing import Any

from fastapi import FastAPI

WORK_SECONDS = float(os.environ.get("WORK_SECONDS", "3"))

bare_lock = FastAPI()
unlocked = FastAPI()
lock = asyncio.Lock()


@bare_lock.get("/test")
async def locked_test() -> dict[str, float]:
    began = time.monotonic()
    async with lock:
        await asyncio.sleep(WORK_SECONDS)
    return {"elapsed": time.monotonic() - began}


@unlocked.get("/test")
async def unlocked_test() -> dict[str, float]:
    began = time.monotonic()
    await asyncio.sleep(WORK_SECONDS)
    return {"elapsed": time.monotonic() - began}


def wsgi(environ: dict[str, Any], start_response: Callable[..., object]) -> Iterable[bytes]:
    if environ["PATH_INFO"] != "/test":
        start_response("404 Not Found", [("Content-Length", "0")])
        return []
    began = time.monotonic()
    time.sleep(WORK_SECONDS)
    body = json.dumps({"elapsed": time.monotonic() - began}).encode()
    headers = [("Content-Type", "application/json"), ("Content-Length", str(len(body)))]
    start_response("200 OK", headers)
    return [body]
