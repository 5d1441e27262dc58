"""The service in a process of its own."""

import os
import queue
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

STARTED = re.compile(r"Uvicorn running on (?:unix socket )?(\S+)")
ROOT = Path(__file__).parents[2]
LIMIT = 30.0
"""Seconds after which a server that does not start or shut down fails the test."""

UVICORN = (sys.executable, "-m", "uvicorn", "--host", "127.0.0.1", "--port", "0")
PYTHON_M = (sys.executable, "-m", "handler")
SLEEPING = {
    "python -m": (sys.executable, "-m", "tests.support.python_m"),
    "uvloop": (*UVICORN, "--loop", "uvloop", "tests.support.apps:sleeping"),
    "work in a thread": (*UVICORN, "--loop", "asyncio", "tests.support.apps:in_a_thread"),
}
"""Commands that start the service as its users do, with a sleep as its work."""


@dataclass
class Server:
    process: "subprocess.Popen[str]"
    log: list[str] = field(default_factory=list)
    url: str = ""

    def stop(self) -> int:
        """Send SIGTERM, and return the exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(LIMIT)


@contextmanager
def serve(*command: str, **environ: str) -> Iterator[Server]:
    """Start the server `command` with the settings `environ`, and shut it down afterwards."""
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=os.environ | environ,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )
    server = Server(process)
    urls: queue.SimpleQueue[str] = queue.SimpleQueue()

    def read() -> None:
        assert process.stderr
        for line in process.stderr:
            server.log.append(line)
            if started := STARTED.search(line):
                urls.put(started[1])
        urls.put("")

    reader = threading.Thread(target=read)
    reader.start()
    try:
        server.url = urls.get(timeout=LIMIT)
        assert server.url, f"the server did not start: {''.join(server.log)}"
        yield server
    finally:
        try:
            if process.poll() is None:
                server.stop()
        finally:
            process.kill()
            reader.join()
        assert process.stderr
        process.stderr.close()


def run(*command: str, **environ: str) -> "subprocess.CompletedProcess[str]":
    """Run `command` to its end with the settings `environ`; its output is in `stdout`."""
    return subprocess.run(
        command,
        cwd=ROOT,
        env=os.environ | environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=LIMIT,
        check=False,
    )


def free_port() -> int:
    """Return a port on which nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def resident_memory(pid: int) -> int:
    """Return the resident memory of a process, in KiB."""
    status = Path(f"/proc/{pid}/status").read_text()
    [line] = [line for line in status.splitlines() if line.startswith("VmRSS")]
    return int(line.split()[1])
