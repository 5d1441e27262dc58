"""One process an address: two would do the work of two requests at once.

A server starts as many processes as it is told to, which share a socket (`uvicorn --workers`). And
a new process may get the address of one whose last request is still running: gunicorn's on HUP, one
that binds the same path, or one that is started a little early.
"""

import asyncio
import errno
import logging
import os
import socket
import sys
import tempfile
import time
from collections.abc import Iterable
from functools import cache
from hashlib import blake2b
from pathlib import Path
from typing import Any

if sys.platform == "win32":  # pragma: no cover
    import msvcrt
else:
    import fcntl

Address = tuple[str, int] | str | bytes
"""A host's address and a port, or the path or the abstract name of a Unix socket."""

POLL_SECONDS = 0.1
"""Seconds between two looks whether a process has exited: no lock of another process wakes us."""

logger = logging.getLogger("uvicorn.error")


class OtherProcess(Exception):
    """Raised when another process serves an address; the message says how to mend that."""

    def __init__(self, address: Address, hint: str) -> None:
        super().__init__(
            f"another process already serves {_show(address)}, and two would process requests "
            f"simultaneously: start one worker (--workers 1, and unset WEB_CONCURRENCY){hint}"
        )


async def claim(addresses: Iterable[Address], seconds: float, hint: str = "") -> None:
    """Claim `addresses` for this process until it exits.

    A process that has handed them over, but still runs, has `seconds` to exit.
    Raises `OtherProcess`, with `hint` at the end of its message, and `OSError` when it cannot be
    told; other addresses may be claimed then.
    """
    for address in addresses:
        serving, running = _bytes(address)
        if not _lock(serving):
            raise OtherProcess(address, hint)
        if not _lock(running):
            logger.info("Waiting for the process that served %s to exit.", _show(address))
        ends = time.monotonic() + seconds
        while not _lock(running):
            if time.monotonic() > ends:
                raise OtherProcess(address, hint)
            await asyncio.sleep(POLL_SECONDS)


def hand_over(addresses: Iterable[Address]) -> None:
    """Let another process claim `addresses`, and wait for the end of this one."""
    for address in addresses:
        serving, _ = _bytes(address)
        _unlock(serving)


def configured_addresses(config: Any) -> set[Address]:
    """Return what uvicorn binds, or has bound in a parent process; none if the system chooses."""
    if config.fd is not None:
        with socket.socket(fileno=os.dup(config.fd)) as given:
            return {_address(given)}
    if config.uds is not None:
        return {os.path.realpath(config.uds)}
    if config.port == 0:
        return set()
    found = socket.getaddrinfo(
        config.host or None, config.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )
    return {(str(address[0]), config.port) for *_, address in found}


def inherited_addresses() -> set[Address]:
    """Return the addresses of this process's stream sockets that listen, or can.

    Raises `OSError` when they cannot be listed.
    """
    addresses = set()
    for name in os.listdir("/dev/fd"):
        try:
            given = socket.socket(fileno=int(name))
        except OSError as error:
            if error.errno in (errno.ENOTSOCK, errno.EBADF):  # EBADF: what listed them
                continue
            raise
        try:
            if given.type == socket.SOCK_STREAM and not _is_connected(given):
                addresses.add(_address(given))
        finally:
            given.detach()
    return {address for address in addresses if address[-1:] not in ("", (0,))}


def _show(address: Address) -> str:
    match address:
        case (str(host), port):
            return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    return str(address)


def _address(bound: socket.socket) -> Address:
    name = bound.getsockname()
    if isinstance(name, tuple):
        return name[:2]
    return os.path.realpath(name) if name and isinstance(name, str) else name


def _is_connected(given: socket.socket) -> bool:
    try:
        given.getpeername()
    except OSError as error:
        if error.errno != errno.ENOTCONN:
            raise
        return False
    return True


def _bytes(address: Address) -> tuple[int, int]:
    """Return which bytes of the file are locked by who serves `address`, and by who still runs."""
    number = int.from_bytes(blake2b(repr(address).encode(), digest_size=7).digest())
    return 2 * number, 2 * number + 1


@cache
def _file() -> int:
    user = "" if sys.platform == "win32" else os.getuid()
    path = Path(tempfile.gettempdir(), f"one-at-a-time-{user}.lock")
    return os.open(path, os.O_RDWR | os.O_CREAT, 0o600)


def _lock(byte: int) -> bool:
    """Lock a byte of the file, unless another process has it; return whether it is locked.

    A POSIX lock belongs to its process, not to its children, until it ends, however that comes.
    """
    try:
        if sys.platform == "win32":  # pragma: no cover
            os.lseek(_file(), byte, os.SEEK_SET)
            msvcrt.locking(_file(), msvcrt.LK_NBLCK, 1)
        else:
            fcntl.lockf(_file(), fcntl.LOCK_EX | fcntl.LOCK_NB, 1, byte)
    except (BlockingIOError, PermissionError):
        return False
    return True


def _unlock(byte: int) -> None:
    if sys.platform == "win32":  # pragma: no cover
        os.lseek(_file(), byte, os.SEEK_SET)
        msvcrt.locking(_file(), msvcrt.LK_UNLCK, 1)
    else:
        fcntl.lockf(_file(), fcntl.LOCK_UN, 1, byte)
