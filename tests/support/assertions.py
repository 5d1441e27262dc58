"""What several tests and the probe assert; uses only the standard library, as the probe does."""

from __future__ import annotations

import re
from itertools import pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import httpx


SERVER_TIMING = re.compile(r"queue;dur=(\d+\.\d{3}), work;dur=(\d+\.\d{3})")


def simultaneous(seconds: float) -> float:
    """Return the seconds within which requests must arrive to be promised an exact step."""
    return min(0.25, seconds / 5)


def is_short(earlier: float, later: float, seconds: float) -> bool:
    """Return whether the step between two `elapsed` is under `seconds`, by either comparison."""
    return later - earlier < seconds or later < earlier + seconds


def spread(responses: list[httpx.Response]) -> float:
    """Return the seconds between two of these requests' arrivals, at the most.

    By the server's own timing: a queued request's turn begins as the one before it ends.
    """
    pairs = pairwise(responses)
    return max(
        (abs(earlier.json()["elapsed"] - queued(later)) for earlier, later in pairs), default=0
    )


def queued(response: httpx.Response) -> float:
    """Return the seconds for which a request was queued, by `Server-Timing`."""
    timing = SERVER_TIMING.fullmatch(response.headers["server-timing"])
    assert timing
    return float(timing[1]) / 1e3


def assert_staircase(responses: list[httpx.Response], seconds: float) -> None:
    """Assert that each response's `elapsed` exceeds the one before by at least `seconds`."""
    assert [response.status_code for response in responses] == [200] * len(responses)
    elapsed = [response.json()["elapsed"] for response in responses]
    assert elapsed[0] >= seconds
    for earlier, later in pairwise(elapsed):
        assert not is_short(earlier, later, seconds)
