"""When a request arrived: `X-Request-Start`, in which a proxy records that.

Its value is `t=` or nothing, then seconds, milliseconds or microseconds since the epoch:
Heroku writes it, nginx and HAProxy when configured to; New Relic and Puma read it.
"""

import re
import time
from collections.abc import Callable

MAX_AGE = 300.0
"""Seconds for which a timestamp is believed; an older one comes from a wrong clock."""

_TIMESTAMP = re.compile(r"(?:t=)?([0-9]{1,16}(?:\.[0-9]{1,9})?)")
_UNITS_PER_SECOND = (1.0, 1e3, 1e6)


def arrival(
    request_start: str | None,
    clock: Callable[[], float] = time.monotonic,
    wall: Callable[[], float] = time.time,
) -> float:
    """Return when a request arrived, in seconds on the monotonic `clock`.

    `request_start` is the header's value; one that is no timestamp, or lies ahead of the `wall`
    clock or more than `MAX_AGE` behind it, counts as none: then the request arrived now.
    Nothing is raised, whatever the value.
    """
    now = clock()
    timestamp = _TIMESTAMP.fullmatch(request_start or "")
    if timestamp is None:
        return now
    for units in _UNITS_PER_SECOND:
        age = wall() - float(timestamp[1]) / units
        if 0 <= age <= MAX_AGE:
            return now - age
    return now
