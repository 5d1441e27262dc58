"""The service and its alternatives, each started by its own users' command.

All of them log each request, as `python -m handler` does.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from tests.support.server import ROOT, free_port, resident_memory

PATH = f"{Path(sys.executable).parent}:{os.environ['PATH']}"


@dataclass
class Running:
    """A contender that runs: where to send requests, and its processes, the front one first."""

    url: str
    pids: list[int]

    def memory(self) -> int:
        """Return the resident memory of all processes, in KiB."""
        return sum(map(resident_memory, self.pids))

    def send_signal(self, signum: int) -> None:
        os.kill(self.pids[0], signum)

    def kill(self) -> None:
        for pid in self.pids:
            os.kill(pid, signal.SIGKILL)


@dataclass(frozen=True)
class Contender:
    """Servers, each in front of the one before: their commands, with $PORT and $APP_PORT."""

    commands: tuple[str, ...]
    elapsed_includes_queue: bool = True
    signals: tuple[signal.Signals, ...] = (signal.SIGTERM,)

    @contextmanager
    def run(self, queue_limit: int, work_seconds: float) -> Iterator[Running]:
        settings = {"MAX_WAITING": str(queue_limit), "WORK_SECONDS": str(work_seconds)}
        pids: list[int] = []
        port = 0
        with ExitStack() as stack:
            for command in self.commands:
                app_port, port = port, free_port()
                ports = {"PORT": str(port), "APP_PORT": str(app_port)}
                pids[:0] = stack.enter_context(serve(command, port, **settings, **ports))
            yield Running(f"http://127.0.0.1:{port}", pids)


@contextmanager
def serve(command: str, port: int, **environ: str) -> Iterator[list[int]]:
    """Run a server; yield the ids of its process and of its workers' as soon as it responds."""
    process = subprocess.Popen(
        f"exec {command}",
        shell=True,
        cwd=ROOT,
        env=os.environ | environ | {"PATH": PATH},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        while not responds(port):
            assert process.poll() is None, f"did not start: {command}"
            time.sleep(0.05)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
        yield [process.pid, *map(int, children.split())]
    finally:
        process.terminate()
        process.wait()


def responds(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}", trust_env=False).status_code == 404
    except httpx.TransportError:
        return False


APPS = "tests.benchmark.apps"
CONTENDERS = {
    "this service (asyncio)": Contender(("uvicorn --loop asyncio --port $PORT handler.main:app",)),
    "this service (uvloop)": Contender(("uvicorn --loop uvloop --port $PORT handler.main:app",)),
    "asyncio.Lock (asyncio)": Contender((f"uvicorn --loop asyncio --port $PORT {APPS}:bare_lock",)),
    "asyncio.Lock (uvloop)": Contender((f"uvicorn --loop uvloop --port $PORT {APPS}:bare_lock",)),
    "gunicorn sync": Contender(
        (
            "gunicorn --bind 127.0.0.1:$PORT --backlog $MAX_WAITING --timeout 300"
            f" --access-logfile - {APPS}:wsgi",
        ),
        elapsed_includes_queue=False,
    ),
    "HAProxy maxconn 1": Contender(
        (
            f"uvicorn --port $PORT {APPS}:unlocked",
            "haproxy -db -f tests/benchmark/haproxy.cfg",
        ),
        elapsed_includes_queue=False,
        signals=(signal.SIGTERM, signal.SIGUSR1),
    ),
}
