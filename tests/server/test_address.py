"""Where `python -m handler` listens."""

import errno
import socket
import sys
from pathlib import Path

import pytest

from handler.server.address import available
from tests.support.server import run

MISSING = OSError(errno.EADDRNOTAVAIL, "Cannot assign requested address")
NO_IPV6 = OSError(errno.EAFNOSUPPORT, "Address family not supported by protocol")


@pytest.mark.parametrize(
    ("errors", "host"),
    [
        ({}, "both.test"),
        ({"::1": MISSING}, "127.0.0.1"),
        ({"::1": NO_IPV6}, "127.0.0.1"),
        ({"127.0.0.1": MISSING}, "::1"),
    ],
)
def test_available(errors: dict[str, OSError], host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name is as it was, if this machine has all its addresses; else it is one of them."""
    fake_addresses(errors, monkeypatch)
    assert available("both.test") == host


@pytest.mark.parametrize(
    "errors",
    [
        {"::1": NO_IPV6, "127.0.0.1": MISSING},
        {"::1": MISSING, "127.0.0.1": PermissionError()},
    ],
)
def test_unavailable(errors: dict[str, OSError], monkeypatch: pytest.MonkeyPatch) -> None:
    """A name without an address of this machine, or one that cannot be tried, is an error."""
    fake_addresses(errors, monkeypatch)
    with pytest.raises(OSError):  # noqa: PT011 - of the system, in its words
        available("both.test")


def fake_addresses(errors: dict[str, OSError], monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a name stand for `::1` and `127.0.0.1`, where binding fails with `errors`."""
    families = {"::1": socket.AF_INET6, "127.0.0.1": socket.AF_INET}
    found = [(families[host], socket.SOCK_STREAM, 6, "", (host, 0)) for host in families]

    class Socket:
        def __init__(self, family: int) -> None:
            pass

        def __enter__(self) -> "Socket":
            return self

        def __exit__(self, *exc: object) -> None:
            pass

        def bind(self, address: tuple[str, int]) -> None:
            if address[0] in errors:
                raise errors[address[0]]

    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: found)
    monkeypatch.setattr(socket, "socket", Socket)


@pytest.mark.parametrize("hostname", ["192.0.2.1", "unknown.invalid"])
def test_a_host_of_another_machine(hostname: str, tmp_path: Path) -> None:
    """A `HOSTNAME` that this machine does not have is one line, with the server's exit status."""
    dotenv = tmp_path / ".env"
    dotenv.write_text(f"HOSTNAME={hostname}\n")
    code = (
        "import pathlib, runpy, handler.settings as settings; "
        f"settings.Settings.read.__func__.__defaults__ = ({{}}, pathlib.Path({str(dotenv)!r})); "
        "runpy.run_module('handler', run_name='__main__')"
    )
    done = run(sys.executable, "-c", code)
    assert done.returncode == 3
    assert done.stdout.startswith(f"handler: HOSTNAME={hostname!r}: ")
    assert done.stdout.count("\n") == 1
