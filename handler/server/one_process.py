"""One process: two that share a listening socket would do the work of two requests at once."""

import os
import socket
import stat
from collections.abc import Iterator
from contextlib import suppress

try:
    import fcntl
except ImportError:  # pragma: no cover
    fcntl = None  # type: ignore[assignment]  # Windows


def is_only_process() -> bool:
    """Return whether no other process that called this shares a listening socket with this one.

    A worker inherits the bound socket, by fork or by spawn, whichever server started it. POSIX
    locks belong to a process and a file: one of all that share the socket gets its lock, and
    keeps it until it exits, or closes a descriptor of that socket.
    """
    if fcntl is None:  # pragma: no cover
        return True
    for descriptor in bound_sockets():
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:  # pragma: no cover
            pass  # a system that locks no sockets
    return True


def bound_sockets() -> Iterator[int]:
    """Yield the descriptors of this process's stream sockets that can listen, or do."""
    for name in os.listdir("/dev/fd"):
        with suppress(OSError):  # the listing's own descriptor is closed by now
            if not stat.S_ISSOCK(os.fstat(int(name)).st_mode):
                continue
            inherited = socket.socket(fileno=int(name))
            try:
                address = inherited.getsockname()
                is_bound = address[1] if isinstance(address, tuple) else address
                if (
                    is_bound
                    and inherited.type == socket.SOCK_STREAM
                    and not is_connected(inherited)
                ):
                    yield int(name)
            finally:
                inherited.detach()


def is_connected(connection: socket.socket) -> bool:
    try:
        connection.getpeername()
    except OSError:
        return False
    return True
