"""One process an address, until it exits."""

import errno
import fcntl
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

from handler.server.one_process import (
    OtherProcess,
    claim,
    configured_addresses,
    hand_over,
    inherited_addresses,
)
from tests.support.server import LIMIT, ROOT

CLAIM = """
import asyncio, logging, sys
logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(message)s")
from handler.server.one_process import claim, hand_over
addresses = {("test", int(sys.argv[1]))}
try:
    asyncio.run(claim(addresses, float(sys.argv[2])))
except Exception as error:
    sys.exit(str(error))
print("claimed", flush=True)
for line in sys.stdin:
    hand_over(addresses)
    print("handed over", flush=True)
"""
PORT = os.getpid()
"""Of an address that no other process of these tests claims."""


@contextmanager
def process(seconds: float = 0) -> Iterator["subprocess.Popen[str]"]:
    """A process that claims the address `("test", PORT)`, and hands it over when told to."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    command = [sys.executable, "-c", CLAIM, str(PORT), str(seconds)]
    with subprocess.Popen(command, cwd=ROOT, text=True, **pipes) as started:  # type: ignore[call-overload]
        try:
            yield started
        except BaseException:
            started.kill()
            raise


def say(process: "subprocess.Popen[str]") -> str:
    """Return the next line that a process prints, or nothing if it has exited."""
    assert process.stdout
    return process.stdout.readline().strip()


def test_one_process() -> None:
    """An address is one process's until that exits; one that handed it over is waited for."""
    with process() as first:
        assert say(first) == "claimed"
        with process(10 * LIMIT) as second:
            _, error = second.communicate(timeout=LIMIT)
            assert f"another process already serves test:{PORT}, and two would" in error
        assert first.stdin
        first.stdin.write("\n")
        first.stdin.flush()
        assert say(first) == "handed over"
        with process() as impatient:
            assert "another process" in impatient.communicate(timeout=LIMIT)[1]
        with process(10 * LIMIT) as successor:
            assert say(successor) == f"Waiting for the process that served test:{PORT} to exit."
            first.kill()
            assert say(successor) == "claimed"
            with process() as third:
                assert "another process" in third.communicate(timeout=LIMIT)[1]


async def test_children_claim_nothing() -> None:
    """What a process has claimed, a child that outlives it does not."""
    await claim({("child", PORT)}, 0)
    await claim({("child", PORT)}, 0)
    hand_over({("child", PORT)})


@pytest.mark.parametrize("error", [PermissionError(errno.EACCES, ""), BlockingIOError()])
async def test_a_lock_that_is_not_had(error: OSError, monkeypatch: pytest.MonkeyPatch) -> None:
    """A lock that another process has makes the claim fail, whatever the system calls that."""
    monkeypatch.setattr(fcntl, "lockf", raiser(error))
    with pytest.raises(OtherProcess):
        await claim({("test", PORT)}, 0)


def raiser(error: Exception) -> object:
    def fail(*args: object, **kwargs: object) -> None:
        raise error

    return fail


async def test_no_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nothing can be locked, the claim fails."""
    monkeypatch.setattr(fcntl, "lockf", raiser(OSError(errno.ENOLCK, "")))
    with pytest.raises(OSError, match=str(errno.ENOLCK)):
        await claim({("test", PORT)}, 0)


def config(**options: object) -> SimpleNamespace:
    return SimpleNamespace(**{"host": "127.0.0.1", "port": 8000, "fd": None, "uds": None} | options)


def test_configured_addresses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """uvicorn's options tell what it binds, however the address is written."""
    assert configured_addresses(config()) == {("127.0.0.1", 8000)}
    assert ("127.0.0.1", 8000) in configured_addresses(config(host="localhost"))
    assert configured_addresses(config(host="0.0.0.0")) == {("0.0.0.0", 8000)}
    assert configured_addresses(config(host="::1")) == {("::1", 8000)}
    assert configured_addresses(config(port=0)) == set()
    monkeypatch.chdir(tmp_path)
    assert configured_addresses(config(uds="s")) == {f"{tmp_path}/s"}
    with socket.create_server(("127.0.0.1", 0)) as listener:
        found = configured_addresses(config(fd=listener.fileno()))
        assert found == {listener.getsockname()}


def test_inherited_addresses(tmp_path: Path) -> None:
    """Sockets that listen, or could, count; connections, datagrams and unbound sockets do not."""
    before = inherited_addresses()
    path = str(tmp_path / "socket")
    with (
        socket.create_server(("127.0.0.1", 0)) as listening,
        socket.socket() as bound,
        socket.socket(socket.AF_UNIX) as unix,
        socket.create_connection(listening.getsockname()),
        listening.accept()[0],
        socket.socket(),
        socket.socket(socket.AF_UNIX),
        socket.socket(type=socket.SOCK_DGRAM) as datagrams,
    ):
        bound.bind(("127.0.0.1", 0))
        unix.bind(path)
        datagrams.bind(("127.0.0.1", 0))
        found = inherited_addresses() - before
        assert found == {
            listening.getsockname(),
            bound.getsockname(),
            path,
        }


@pytest.mark.parametrize("name", ["listdir", "socket", "getpeername"])
def test_sockets_that_cannot_be_told(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sockets that cannot be listed or examined are an error: they may be another process's."""
    with socket.create_server(("127.0.0.1", 0)):
        if name == "listdir":
            monkeypatch.setattr(os, "listdir", raiser(FileNotFoundError("/dev/fd")))
        elif name == "socket":
            monkeypatch.setattr(socket, "socket", raiser(PermissionError()))
        else:
            monkeypatch.setattr(socket.socket, "getpeername", raiser(PermissionError()))
        with pytest.raises((FileNotFoundError, PermissionError)):
            inherited_addresses()


def test_a_path_through_a_link(tmp_path: Path) -> None:
    """A Unix socket has one address, whatever links lead to it."""
    (tmp_path / "link").symlink_to(tmp_path)
    path = str(tmp_path / "link/socket")
    assert configured_addresses(config(uds=path)) == {f"{tmp_path}/socket"}
    with socket.socket(socket.AF_UNIX) as unix:
        unix.bind(path)
        assert f"{tmp_path}/socket" in inherited_addresses()
        assert configured_addresses(config(fd=unix.fileno())) == {f"{tmp_path}/socket"}
