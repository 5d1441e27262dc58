"""Where `python -m handler` listens: on a host's addresses, as far as this machine has them.

Before Python 3.13, asyncio does not start where one is missing: `::1`, which `/etc/hosts` has for
localhost in many containers whose IPv6 is off.
"""

import errno
import socket

MISSING = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)


def available(hostname: str) -> str:
    """Return `hostname`, or the first of its addresses if this machine does not have them all.

    Raises `OSError` if it has none of them, or if the name is unknown.
    """
    found = socket.getaddrinfo(hostname, None, type=socket.SOCK_STREAM)
    addresses = [str(address[0]) for family, *_, address in found if _exists(family, address)]
    if not addresses:
        raise OSError(errno.EADDRNOTAVAIL, "not an address of this machine")
    return hostname if len(addresses) == len(found) else addresses[0]


def _exists(family: int, address: tuple[object, ...]) -> bool:
    try:
        with socket.socket(family) as probe:
            probe.bind(address)
    except OSError as error:
        if error.errno not in MISSING:
            raise
        return False
    return True
