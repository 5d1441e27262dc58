"""The promises that a caller can see, at every door."""

import pytest

from tests.support.assertions import SERVER_TIMING, assert_staircase
from tests.support.doors import Door


def test_an_answer(door: Door) -> None:
    """A call is answered with the seconds that it took, and nothing else."""
    [answer] = door.burst(1)
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    assert list(answer.json()) == ["elapsed"]
    assert isinstance(answer.json()["elapsed"], float)
    assert answer.json()["elapsed"] >= door.work_seconds


def test_server_timing(door: Door) -> None:
    """`Server-Timing` splits the elapsed time into waiting and working, in milliseconds."""
    for answer in door.burst(2):
        timing = SERVER_TIMING.fullmatch(answer.headers["server-timing"])
        assert timing
        queue, work = map(float, timing.groups())
        assert work >= 1e3 * door.work_seconds
        assert queue + work == pytest.approx(1e3 * answer.json()["elapsed"], abs=0.002)


@pytest.mark.parametrize("calls", [2, 4, 8])
def test_a_burst(door: Door, calls: int) -> None:
    """Simultaneous calls return one by one, each exactly a turn or more after the one before."""
    assert_staircase(door.burst(calls), door.work_seconds)


def test_a_caller_in_a_loop(door: Door) -> None:
    """Who calls again when it is answered is held to no step: each of its calls takes one turn."""
    answers = [door.burst(1)[0].json()["elapsed"] for _ in range(4)]
    assert sum(answers) < 2 * 4 * door.work_seconds
