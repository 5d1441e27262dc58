"""The probe: what it shows, writes and returns, on services that keep the promise and others."""

import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from xml.etree import ElementTree

import pytest

from tests.probe import Caller, Verdict, judge, main
from tests.server import UVICORN, serve

WORK_SECONDS = "0.2"


@pytest.fixture(autouse=True)
def _work_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORK_SECONDS", WORK_SECONDS)


@pytest.fixture
def not_this_service() -> Iterator[str]:
    """Start a server that answers 200 to anything, but not in JSON."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"<h1>It works!</h1>")

        def log_message(self, *arguments: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def served(*elapsed: float) -> list[Caller]:
    return [Caller(1, 200, seconds, None, seconds) for seconds in elapsed]


REFUSED = Caller(9, 503, seconds=0.1)
FAILED = Caller(9, 500, problem="500 Internal Server Error: ''", seconds=0.1)


@pytest.mark.parametrize(
    ("answered", "verdict", "reason"),
    [
        (served(3.0, 6.0, 9.5), Verdict.KEPT, "the least of 2 steps is 3.0 s"),
        ([REFUSED, *served(3.0, 6.5)], Verdict.KEPT, "the least of 1 steps is 3.5 s"),
        (served(3.0, 5.75), Verdict.BROKEN, "1 short of 3 s: the least of 1 steps is 2.75 s"),
        (served(3.25, 6.25), Verdict.KEPT, "the least of 1 steps is 3.0 s"),
        (served(2.9, 6.0), Verdict.BROKEN, "the first answer took 2.9, less than 3 s"),
        ([FAILED, *served(3.0, 6.0)], Verdict.BROKEN, "1 of 3 failed: 500 Internal Server Error"),
        ([REFUSED, *served(3.0)], Verdict.UNKNOWN, "one caller was served: there is no step"),
        ([REFUSED], Verdict.UNKNOWN, "no caller was served: all were refused"),
        ([FAILED], Verdict.UNKNOWN, "no caller was served: 500 Internal Server Error"),
    ],
)
def test_verdict(answered: list[Caller], verdict: Verdict, reason: str) -> None:
    """Kept is what was shown; a failure or a short step breaks it; the rest cannot be told."""
    found, why = judge(answered, 3.0)
    assert found == verdict
    assert why.startswith(reason)


@pytest.mark.parametrize("terminal", [False, True], ids=["plain", "terminal"])
def test_kept(
    terminal: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """On a service that keeps its promise: every caller, the staircase, and exit status 0."""
    if terminal:
        monkeypatch.setenv("FORCE_COLOR", "1")
    picture, report = tmp_path / "staircase.svg", tmp_path / "report.json"
    with serve(*UVICORN, "handler.main:app") as server:
        files = ["--svg", str(picture), "--json", str(report)]
        assert main([server.url, "-n", "3", *files]) == Verdict.KEPT
    shown = capsys.readouterr().out
    assert ("\x1b[" in shown) is terminal
    assert shown.count("█ 0.") == 3
    assert "kept: the least of 2 steps is 0.2" in shown
    assert len(ElementTree.parse(picture).findall(".//{*}rect")) == 1 + 2 * 3
    written = json.loads(report.read_text())
    assert written["verdict"] == "kept"
    assert written["least_step"] >= 0.2
    assert [answer["status"] for answer in written["answers"]] == [200] * 3


def test_refusals_are_no_breach(capsys: pytest.CaptureFixture[str]) -> None:
    """Callers that are told to come again break nothing."""
    with serve(*UVICORN, "handler.main:app", MAX_WAITING="1") as server:
        assert main([f"{server.url}/test", "-n", "4"]) == Verdict.KEPT
    assert capsys.readouterr().out.count("503, told to come again") == 2


def test_broken(capsys: pytest.CaptureFixture[str]) -> None:
    """On a service that works on many calls at a time the exit status is 1."""
    with serve(*UVICORN, "tests.rivals:unlocked") as server:
        assert main([server.url, "-n", "3"]) == Verdict.BROKEN
    assert "\nbroken: " in capsys.readouterr().out


def test_no_answer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Where nothing listens it cannot be told; there is a report, and nothing to draw."""
    picture, report = tmp_path / "staircase.svg", tmp_path / "report.json"
    arguments = ["http://127.0.0.1:1", "--svg", str(picture), "--json", str(report)]
    assert main(arguments) == Verdict.UNKNOWN
    assert "unknown: no caller was served: ConnectError" in capsys.readouterr().out
    assert not picture.exists()
    assert json.loads(report.read_text())["least_step"] is None


def test_not_this_service(not_this_service: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Where something else answers, the line says with what."""
    assert main([not_this_service, "-n", "2"]) == Verdict.UNKNOWN
    assert "200, but no {\"elapsed\": seconds}: '<h1>It works!</h1>'" in capsys.readouterr().out


def test_tls_failure(not_this_service: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A failure of TLS is a line that says so."""
    assert main([not_this_service.replace("http:", "https:"), "-n", "2"]) == Verdict.UNKNOWN
    assert "ConnectError: [SSL" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nonsense"], "'nonsense' is no URL such as http://localhost:8000"),
        (["ftp://host"], "'ftp://host' is no URL"),
        (["http://host:99999"], "'http://host:99999' is no URL"),
        (["http://[::1"], "'http://[::1' is no URL"),
        (["http://host", "-n", "1"], "'1' must be a whole number, 2 or more"),
        (["http://host", "-n", "many"], "'many' must be a whole number, 2 or more"),
        ([], "the following arguments are required: URL"),
    ],
)
def test_usage(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A wrong argument is named, with what is right, and the exit status is 2."""
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    assert exit_.value.code == Verdict.UNKNOWN
    assert message in capsys.readouterr().err
