"""The end of the process."""

import logging
import multiprocessing
import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import httpx
import pytest

from handler.server.exit import end_process, exit_after, is_command_line
from tests.support.server import LIMIT, UVICORN, run, serve


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


class Child:
    def __init__(self, events: list[str]) -> None:
        self.kill = lambda: events.append("killed")


def test_exit_after(monkeypatch: pytest.MonkeyPatch) -> None:
    """After its time the process kills its children, writes what it has to write, and exits."""
    events: list[str] = []
    exited = threading.Event()

    def leave(status: int) -> None:
        events.append(f"exited with {status}")
        exited.set()

    monkeypatch.setattr(sys, "argv", ["uvicorn"])
    monkeypatch.setattr(os, "_exit", leave)
    monkeypatch.setattr(logging, "shutdown", lambda: events.append("flushed"))
    monkeypatch.setattr(multiprocessing, "active_children", lambda: [Child(events)])
    exit_after(0)
    assert exited.wait(LIMIT)
    assert events == ["killed", "flushed", "exited with 0"]


def test_exit_after_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    """The process exits, too, where its children cannot be told."""
    statuses: list[int] = []
    monkeypatch.setattr(os, "_exit", statuses.append)
    monkeypatch.setattr(multiprocessing, "active_children", lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        end_process()
    assert statuses == [0]


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
