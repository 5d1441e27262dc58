"""The promises that a client can see, at every entry point."""

import os
import subprocess
import sys
from itertools import pairwise
from types import SimpleNamespace
from typing import cast

import pytest

from tests.conftest import pytest_configure
from tests.support.assertions import SERVER_TIMING, assert_staircase
from tests.support.entry_points import EntryPoint
from tests.support.server import LIMIT, ROOT, UVICORN, serve


def test_response(entry_point: EntryPoint) -> None:
    """The response holds the seconds that the request took, and what the work returned."""
    [response] = entry_point.burst(1)
    assert response.status_code == 200
    assert response.headers["content-type"] == "application/json"
    assert response.headers["cache-control"] == "no-store"
    assert list(response.json()) in (["elapsed"], ["elapsed", "result"])
    assert isinstance(response.json()["elapsed"], float)
    assert response.json()["elapsed"] >= entry_point.work_seconds


def test_server_timing(entry_point: EntryPoint) -> None:
    """`Server-Timing` splits `elapsed` into queueing and work, in milliseconds."""
    for response in entry_point.burst(2):
        timing = SERVER_TIMING.fullmatch(response.headers["server-timing"])
        assert timing
        queue, work = map(float, timing.groups())
        assert work >= 1e3 * entry_point.work_seconds
        assert queue + work == pytest.approx(1e3 * response.json()["elapsed"], abs=0.002)


@pytest.mark.parametrize("n", [2, 4, 8])
def test_burst(entry_point: EntryPoint, n: int) -> None:
    """Of simultaneous requests, each `elapsed` is at least a turn longer than the one before."""
    assert_staircase(entry_point.burst(n), entry_point.work_seconds)


def test_a_client_in_a_loop(entry_point: EntryPoint) -> None:
    """A client that sends again after each response is held to no step."""
    elapsed = [entry_point.burst(1)[0].json()["elapsed"] for _ in range(4)]
    steps = [later - earlier for earlier, later in pairwise(elapsed)]
    assert min(steps) < entry_point.work_seconds / 2


def test_url_on_this_machine() -> None:
    """`--url` runs only the contract tests, and uses no proxy for a service on this machine."""
    proxies = {"HTTP_PROXY": "http://127.0.0.1:9", "ALL_PROXY": "socks5://127.0.0.1:9"}
    with serve(*UVICORN, "tests.support.apps:sleeping", WORK_SECONDS="0.3") as server:
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-k", "response", "--url", server.url],
            cwd=ROOT,
            env=os.environ | proxies | {"WORK_SECONDS": "0.3", "PYTEST_ADDOPTS": ""},
            capture_output=True,
            text=True,
            timeout=4 * LIMIT,
            check=False,
        )
    assert done.returncode == 0, done.stdout
    assert "1 passed, 5 deselected" in done.stdout


@pytest.mark.parametrize(
    ("url", "proxy"),
    [
        ("localhost:8000", ""),
        ("http://127.0.0.1:9", "socks5://127.0.0.1:9"),
        ("http://[::1", ""),
        ("http://test.invalid", "socks5://127.0.0.1:9"),
        ("http://test.invalid", "nonsense://127.0.0.1:9"),
    ],
)
def test_url_that_cannot_be_used(url: str, proxy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A URL that `--url` cannot use is reported in one line, with the URL."""
    monkeypatch.setenv("ALL_PROXY", proxy)
    config = cast("pytest.Config", SimpleNamespace(getoption={"url": url}.get))
    with pytest.raises(pytest.UsageError) as error:
        pytest_configure(config)
    assert str(error.value).startswith(f"--url {url}: ")
    assert "\n" not in str(error.value)
