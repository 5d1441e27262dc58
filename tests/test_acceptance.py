"""The acceptance, as it was asked for; `acceptance.py` runs it beside the other tests."""

from concurrent.futures import Future

import pytest

from tests.acceptance import Bursts
from tests.test_contract import assert_staircase

Acceptance = Future[Bursts]


@pytest.mark.parametrize("calls", [2, 4, 8])
@pytest.mark.parametrize("place", ["server", "deployment"])
def test_a_burst(acceptance: Acceptance, place: str, calls: int) -> None:
    """All are answered 200, in less than 29 s, and each takes at least 3 s more than the last."""
    answers, seconds = acceptance.result()[place, calls]
    assert_staircase(answers, 3)
    assert seconds < 29


def test_no_turn_in_time(acceptance: Acceptance) -> None:
    """Who is not served is told so when the gateway's 29 s are over."""
    [answer], seconds = acceptance.result()["taken", 1]
    assert answer.status_code == 503
    assert answer.headers["retry-after"] == "4"
    assert answer.json() == {"detail": "Not served in time; try again later."}
    assert 29 <= seconds < 30
