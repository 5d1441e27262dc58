"""When a request arrived."""

import pytest

from handler.arrival import arrival
from tests.support.properties import given, st

NOW = 5000.0
WALL = 1_795_500_000.0
"""A day in November 2026, in seconds since the epoch."""


def arrived(timestamp: str | None) -> float:
    """Return the arrival of a request with this header, the clocks being at `NOW` and `WALL`."""
    return arrival(timestamp, clock=lambda: NOW, wall=lambda: WALL)


@pytest.mark.parametrize("prefix", ["", "t="])
@pytest.mark.parametrize("decimals", ["", ".0", ".000000"])
@pytest.mark.parametrize("unit", ["", "000", "000000"], ids=["s", "ms", "µs"])
def test_units(prefix: str, unit: str, decimals: str) -> None:
    """Seconds, milliseconds and microseconds since the epoch are distinguished by their size."""
    assert arrived(f"{prefix}1795499990{unit}{decimals}") == NOW - 10


def test_fraction() -> None:
    """The decimals count: nginx writes seconds with milliseconds as decimals."""
    assert arrived("t=1795499999.750") == NOW - 0.25


def test_no_header() -> None:
    """Without the header, a request arrives when it reaches the app."""
    assert arrived(None) == NOW


@pytest.mark.parametrize("age", [0.0, 1.0, 300.0])
def test_believed(age: float) -> None:
    """A timestamp within the last 300 s is believed."""
    assert arrived(f"t={WALL - age}") == NOW - age


@pytest.mark.parametrize(
    "age", [-0.001, -1, -3600, 300.001, 3600, WALL], ids=lambda age: f"{age} s old"
)
def test_disbelieved(age: float) -> None:
    """A timestamp that is ahead of the clock or too old counts as now."""
    assert arrived(f"t={WALL - age}") == NOW


RUBBISH = [
    "",
    "t=",
    "T=1795499990",
    "t=t=1795499990",
    "t=nan",
    "-inf",
    "t=-1795499990",
    "1e9",
    "1_795_499_990",
    "1795499990.",
    "1795499990, 1795499990",
    "t=1795499990\n",
    "١٧٩٥٤٩٩٩٩٠",
    "9" * 100_000,
]


@pytest.mark.parametrize("rubbish", RUBBISH, ids=lambda text: repr(text[:20]))
def test_rubbish(rubbish: str) -> None:
    """A value that is not a timestamp counts as no header."""
    assert arrived(rubbish) == NOW


@given(st.one_of(st.text(), st.from_regex(r"(t=)?[0-9.eE+-]{0,30}"), st.floats().map(str)))
def test_anything(value: str) -> None:
    """Whatever the header's value, the request arrived now or within the last 300 s."""
    assert NOW - 300 <= arrived(value) <= NOW
