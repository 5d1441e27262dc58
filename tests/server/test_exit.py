"""The end of the process."""

import os
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import httpx
import pytest

from handler.server.exit import is_command_line
from tests.support.server import UVICORN, run, serve


@pytest.mark.parametrize(
    ("command", "is_ours"),
    [
        ("/venv/bin/uvicorn", True),
        (r"uvicorn", True),
        ("/venv/lib/site-packages/uvicorn/__main__.py", True),
        ("/src/handler/__main__.py", True),
        ("/venv/bin/pytest", False),
        ("/venv/lib/site-packages/pytest/__main__.py", False),
        ("/venv/bin/gunicorn", False),
        ("/src/serve.py", False),
        ("-c", False),
        ("", False),
    ],
)
def test_is_command_line(command: str, is_ours: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """uvicorn's command line and `python -m handler` are ended, no program that embeds them."""
    monkeypatch.setattr(sys, "argv", [command])
    assert is_command_line() == is_ours


def shut_down(app: str) -> tuple[int, httpx.Response | None, list[str]]:
    """Send a request to an app, then SIGTERM; return the exit status, the response and the log."""
    command = (*UVICORN, "--timeout-graceful-shutdown", "1", f"tests.support.hanging:{app}")
    response = None
    with serve(*command, WORK_SECONDS="0.1") as server:
        with httpx.Client(base_url=server.url) as client, suppress(httpx.TransportError):
            if app in ("to_thread", "swallowing", "blocking"):
                client.get("/test", timeout=0.5)
            else:
                response = client.get("/test")
        return server.stop(), response, server.log


def test_what_the_work_leaves() -> None:
    """The process exits with status 0, whatever hangs, blocks the event loop or is left running."""
    apps = ["to_thread", "executor", "own_pool", "child", "swallowing", "blocking"]
    with ThreadPoolExecutor(len(apps)) as threads:
        results = dict(zip(apps, threads.map(shut_down, apps), strict=True))
    assert {app: status for app, (status, *_) in results.items()} == dict.fromkeys(apps, 0)
    assert not [line for *_, log in results.values() for line in log if "Traceback" in line]
    _, response, _ = results["child"]
    assert response
    with pytest.raises(ProcessLookupError):
        os.kill(response.json()["result"], 0)


EMBEDDING = """
import atexit, os, signal, threading, time, uvicorn
from tests.support.hanging import executor
server = uvicorn.Server(uvicorn.Config(executor, port=0, log_config=None))
def stop():
    while not server.started:
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGTERM)
threading.Thread(target=stop).start()
server.run()
time.sleep(3)
print("still here")
"""


def test_a_program_that_embeds_the_server() -> None:
    """A program that embeds the server goes on after the server's shutdown."""
    done = run(sys.executable, "-c", EMBEDDING)
    assert done.stdout.splitlines()[-1] == "still here"
    assert done.returncode == 0
