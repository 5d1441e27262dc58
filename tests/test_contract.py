"""The promises that a caller can see, at every entry point."""

import pytest

from tests.support.assertions import SERVER_TIMING, assert_staircase
from tests.support.entry_points import EntryPoint


def test_an_answer(entry_point: EntryPoint) -> None:
    """A call is answered with the seconds that it took, and nothing else."""
    [answer] = entry_point.burst(1)
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    assert list(answer.json()) == ["elapsed"]
    assert isinstance(answer.json()["elapsed"], float)
    assert answer.json()["elapsed"] >= entry_point.work_seconds


def test_server_timing(entry_point: EntryPoint) -> None:
    """`Server-Timing` splits the elapsed time into waiting and working, in milliseconds."""
    for answer in entry_point.burst(2):
        timing = SERVER_TIMING.fullmatch(answer.headers["server-timing"])
        assert timing
        queue, work = map(float, timing.groups())
        assert work >= 1e3 * entry_point.work_seconds
        assert queue + work == pytest.approx(1e3 * answer.json()["elapsed"], abs=0.002)


@pytest.mark.parametrize("calls", [2, 4, 8])
def test_a_burst(entry_point: EntryPoint, calls: int) -> None:
    """Simultaneous calls return one by one, each exactly a turn or more after the one before."""
    assert_staircase(entry_point.burst(calls), entry_point.work_seconds)


def test_a_caller_in_a_loop(entry_point: EntryPoint) -> None:
    """Who calls again when it is answered is held to no step: each of its calls takes one turn."""
    answers = [entry_point.burst(1)[0].json()["elapsed"] for _ in range(4)]
    assert sum(answers) < 2 * 4 * entry_point.work_seconds
