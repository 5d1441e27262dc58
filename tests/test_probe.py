"""The probe: what it prints, writes and returns, on services that pass and on others."""

import json
import re
import signal
import socket
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from math import nextafter, ulp
from pathlib import Path
from queue import Empty, SimpleQueue
from select import select
from subprocess import PIPE, STDOUT, CompletedProcess, Popen, run
from threading import Barrier, Thread
from xml.etree import ElementTree

import pytest

from tests.probe import Response, caption, judge, main, svg
from tests.support.assertions import is_short
from tests.support.properties import given, st
from tests.support.server import ROOT, UVICORN, serve

PROBE = (sys.executable, "-S", "-E", "-m", "tests.probe")
"""The probe without any installed package."""

WITH_ENVIRONMENT = (sys.executable, "-m", "tests.probe")
"""The probe with the variables that Python reads."""

LIMIT = 20.0
"""Seconds after which what does not come fails the test."""

Capture = pytest.CaptureFixture[str]
Service = tuple[str, SimpleQueue[bytes]]


@pytest.fixture
def service() -> Iterator[Service]:
    """Start a server; return its URL, and a queue of the responses that it sends once put there."""
    responses: SimpleQueue[bytes] = SimpleQueue()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            with suppress(Empty):  # the probe was interrupted
                self.wfile.write(responses.get(timeout=LIMIT))

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever, args=[0.01]).start()
        yield f"http://127.0.0.1:{server.server_port}", responses
        server.shutdown()


def run_probe(*arguments: str) -> CompletedProcess[str]:
    command = [*PROBE, *arguments]
    return run(command, cwd=ROOT, capture_output=True, encoding="utf-8", timeout=LIMIT)


def start_probe(
    *arguments: str, command: tuple[str, ...] = PROBE, encoding: str = "utf-8"
) -> "Popen[str]":
    return Popen([*command, *arguments], cwd=ROOT, stdout=PIPE, stderr=STDOUT, encoding=encoding)


def ok(body: str) -> bytes:
    return f"HTTP/1.1 200 OK\r\n\r\n{body}".encode()


def succeeded(*elapsed: float) -> list[Response]:
    return [Response(1, 200, seconds) for seconds in elapsed]


REJECTED = Response(9, 503, retry_after="3")
FAILED = Response(9, 500, problem="500 Internal Server Error: ''")


@pytest.mark.parametrize(
    ("received", "verdict", "reason"),
    [
        (succeeded(3.0, 6.0, 9.5), "pass", "smallest of 2 steps is 3.000000 s (at least 3 s)"),
        (
            [REJECTED, *succeeded(3.0, 6.5)],
            "pass",
            "smallest of 1 step is 3.500000 s (at least 3 s)",
        ),
        (
            succeeded(3.0, 5.75),
            "fail",
            "1 of 1 step is shorter than 3 s (smallest: 2.750000 s)",
        ),
        (
            succeeded(3.0, 5.99999999, 8, 11),
            "fail",
            "2 of 3 steps are shorter than 3 s (smallest: 2.000000 s)",
        ),
        (succeeded(3.25, 6.25), "pass", "smallest of 1 step is 3.000000 s (at least 3 s)"),
        (succeeded(2.9, 6.0), "fail", "the first response took 2.900000 s, less than 3 s"),
        (succeeded(nextafter(3, 0)), "fail", "the first response took 2.999999 s, less than 3 s"),
        (
            [FAILED, *succeeded(3.0, 6.0)],
            "fail",
            "1 of 3 requests failed: 500 Internal Server Error: ''",
        ),
        (
            [REJECTED, *succeeded(3.0)],
            "inconclusive",
            "only one request succeeded: there is no step to judge",
        ),
        (
            [REJECTED],
            "inconclusive",
            "no request succeeded: all were rejected: 503, Retry-After: 3",
        ),
        ([FAILED], "inconclusive", "no request succeeded: 500 Internal Server Error: ''"),
    ],
)
def test_verdict(received: list[Response], verdict: str, reason: str) -> None:
    """What was shown passes; a failed request or a short step fails; else it is inconclusive."""
    assert judge(received, 3.0) == (verdict, reason)


@pytest.mark.parametrize(
    ("seconds", "later", "verdict", "reason"),
    [
        (0.3, 0.59999999, "fail", "1 of 1 step is shorter than 0.3 s (smallest: 0.299999 s)"),
        (3.0, nextafter(6, 0), "fail", "1 of 1 step is shorter than 3 s (smallest: 2.999999 s)"),
        (3.0, 6.0009169, "pass", "smallest of 1 step is 3.000916 s (at least 3 s)"),
        (0.1234567, 0.2469134, "pass", "smallest of 1 step is 0.123456 s (at least 0.1234567 s)"),
        (3.0, 1e300, "pass", f"smallest of 1 step is 1{300 * '0'}.000000 s (at least 3 s)"),
        (3.0, 0.5, "fail", "1 of 1 step is shorter than 3 s (smallest: -2.500000 s)"),
    ],
)
def test_step_cut(seconds: float, later: float, verdict: str, reason: str) -> None:
    """The smallest step is printed to the microsecond and never rounded up."""
    assert judge(succeeded(seconds, later), seconds) == (verdict, reason)


@given(first=st.floats(3, 1e5), ulps=st.lists(st.integers(-2, 2), min_size=1))
def test_no_short_step_passes(first: float, ulps: list[int]) -> None:
    """A verdict is PASS for no step that is short by a bit, nor does it print one as 3 s."""
    elapsed = [first]
    for distance in ulps:
        later = elapsed[-1] + 3.0
        elapsed.append(later + distance * ulp(later))
    verdict, reason = judge(succeeded(*elapsed), 3.0)
    whole = not any(is_short(*step, 3.0) for step in pairwise(elapsed))
    [smallest] = re.findall(r"(?:is|smallest:) (\d+\.\d{6}) s", reason)
    assert (verdict == "pass", float(smallest) >= 3) == (whole, whole)


def test_pass(tmp_path: Path) -> None:
    """Three requests that succeed, one by one, and two rejections pass: exit status 0."""
    options = f"-n 5 --seconds 0.5 --svg {tmp_path}/svg --json {tmp_path}/json".split()
    with serve(
        *UVICORN, "tests.support.apps:sleeping", WORK_SECONDS="0.5", MAX_WAITING="2"
    ) as server:
        probe = run_probe(server.url, *options)
    assert (probe.returncode, probe.stderr) == (0, "")
    assert probe.stdout.count("rejected: 503, Retry-After: 1\n") == 2
    assert probe.stdout.count(f"{'█' * 13} ") == 3
    verdict = r"\nPASS: smallest of 2 steps is 0\.5\d{5} s \(at least 0\.5 s\)\n$"
    assert re.search(verdict, probe.stdout)
    assert len(ElementTree.parse(tmp_path / "svg").findall(".//{*}rect")) == 1 + 2 * 3 + 2
    report = json.loads((tmp_path / "json").read_text())
    assert (report["url"], report["verdict"]) == (f"{server.url}/test", "pass")
    assert report["smallest_step"] >= report["work_seconds"] == 0.5
    assert sorted(response["status"] for response in report["responses"]) == [200] * 3 + [503] * 2


def test_live(service: Service) -> None:
    """Each line is out before the next response comes, and Ctrl+C ends the wait silently."""
    url, responses = service
    with start_probe(url, "-n", "4") as probe:
        assert probe.stdout
        for elapsed, dots in (3, 0), (6.5, 19), (99, 48):
            responses.put(ok(f'{{"elapsed": {elapsed}}}'))
            assert probe.stdout.readline() == f"{'·' * dots}{'█' * 16} {elapsed:.3f}\n"
        probe.send_signal(signal.SIGINT)
        assert probe.wait(LIMIT / 2) == -signal.SIGINT
        assert probe.stdout.read() == ""


@pytest.mark.parametrize("encoding", ["cp1252", "ascii"])
def test_encoding(service: Service, encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An encoding without the block gets an ASCII staircase, and the same verdict."""
    url, responses = service
    monkeypatch.setenv("PYTHONIOENCODING", encoding)
    with start_probe(url, "-n", "2", command=WITH_ENVIRONMENT, encoding=encoding) as probe:
        assert probe.stdout
        for elapsed, dots in (3, 0), (6, 32):
            responses.put(ok(f'{{"elapsed": {elapsed}}}'))
            assert probe.stdout.readline() == f"{'.' * dots}{'#' * 32} {elapsed}.000\n"
        verdict = "PASS: smallest of 1 step is 3.000000 s (at least 3 s)\n"
        assert (probe.stdout.read(), probe.wait()) == (verdict, 0)


@pytest.mark.parametrize(
    ("encoding", "body", "printed"),
    [("cp1252", "é·", "é·"), ("cp1252", "Ω", "\\u03a9"), ("ascii", "é", "\\xe9")],
)
def test_encoding_of_a_response(
    service: Service, encoding: str, body: str, printed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the terminal's encoding lacks what a service sent, that is escaped."""
    url, responses = service
    monkeypatch.setenv("PYTHONIOENCODING", encoding)
    for _ in range(2):
        responses.put(ok(body))
    with start_probe(url, "-n", "2", command=WITH_ENVIRONMENT, encoding=encoding) as probe:
        assert probe.stdout
        verdict = "INCONCLUSIVE: no request succeeded: 200, but no"
        assert probe.stdout.read() == f"{verdict} {{\"elapsed\": seconds}}: '{printed}'\n"
        assert probe.wait() == 2


def test_connected_before_request(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    """No client sends a request before all have connected, or failed to."""
    connect, errors = HTTPConnection.connect, [ConnectionRefusedError()]

    def fail_once(connection: HTTPConnection) -> None:
        if errors:
            raise errors.pop()
        connect(connection)

    monkeypatch.setattr(HTTPConnection, "connect", fail_once)
    monkeypatch.setattr("tests.probe.Barrier", partial(Barrier, timeout=LIMIT))
    connected: list[socket.socket] = []
    with ThreadPoolExecutor() as pool, socket.create_server(("127.0.0.1", 0)) as server:
        probe = pool.submit(main, [f"http://127.0.0.1:{server.getsockname()[1]}", "-n", "20"])
        while server in select([server, *connected], [], [])[0]:
            connected.append(server.accept()[0])
        while select([server], [], [], 0)[0]:
            connected.append(server.accept()[0])
        began = [connection.recv(3) for connection in connected]
        for connection in connected:
            connection.close()
    assert (began, probe.result()) == ([b"GET"] * 19, 2)
    assert "failed: ConnectionRefusedError: no response\n" in capsys.readouterr().out


def test_fail(service: Service, tmp_path: Path, capsys: Capture) -> None:
    """A service that works on requests simultaneously fails; nothing rounds a short step up."""
    with serve(*UVICORN, "tests.benchmark.apps:unlocked", WORK_SECONDS="0.2") as server:
        assert main([server.url, "-n", "3", "--seconds", "0.2"]) == 1
    assert "\nFAIL: " in capsys.readouterr().out
    url, responses = service
    with start_probe(url, "-n", "2", "--svg", f"{tmp_path}/svg") as probe:
        assert probe.stdout
        for elapsed, printed in (3.9999, f"{'·' * 11}{'█' * 32} 3.999"), (6.9998, "6.999"):
            responses.put(ok(f'{{"elapsed": {elapsed}}}'))
            assert probe.stdout.readline().endswith(f"{printed}\n")
        verdict = "FAIL: 1 of 1 step is shorter than 3 s (smallest: 2.999900 s)"
        assert (probe.stdout.read(), probe.wait()) == (f"{verdict}\n", 1)
    picture = ElementTree.parse(tmp_path / "svg")
    caption = f"Two simultaneous requests, 3 s of work each: {verdict}"
    words = [text.text or "" for text in picture.iterfind("{*}text")]
    assert (picture.findtext("{*}title"), " ".join(words[:2])) == (caption, caption)
    assert words[2:4] == ["3.999 s", "6.999 s"]


def test_picture(service: Service, tmp_path: Path) -> None:
    """A picture is 480 px wide, says in plain words what it shows, and rounds no step up."""
    url, responses = service
    with start_probe(url, "-n", "2", "--svg", f"{tmp_path}/svg") as probe:
        assert probe.stdout
        for elapsed in (3, 6.0009999):
            responses.put(ok(f'{{"elapsed": {elapsed}}}'))
            assert probe.stdout.readline()
        assert "3.000999 s" in probe.stdout.read()
    picture = ElementTree.parse(tmp_path / "svg")
    size = picture.getroot().attrib
    assert (size["width"], size["viewBox"]) == ("480", f"0 0 480 {size['height']}")
    caption = "Two simultaneous requests, 3 s of work each: smallest step 3.000 s"
    assert picture.findtext("{*}title") == caption
    words = [text.text for text in picture.iterfind("{*}text")]
    assert words == [caption, "3.000 s", "6.000 s", "waiting", "working"]


@pytest.mark.parametrize(
    ("clients", "number"), [(2, "Two"), (8, "Eight"), (9, "Nine"), (10, "10"), (40, "40")]
)
def test_caption(clients: int, number: str) -> None:
    """Small numbers of requests are words; durations have all their digits."""
    words = "simultaneous requests, 0.3 s of work each: done"
    assert caption(clients, 0.3, "done") == f"{number} {words}"


def test_contrast() -> None:
    """A picture is readable on any page: it covers its own background, and contrasts with it."""

    def luminance(colour: str) -> float:
        channels = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    picture = ElementTree.fromstring(svg([3, 6], 3, "title"))
    [background, *bars] = picture.iterfind("{*}rect")
    assert [background.get(side) for side in ("width", "height")] == ["480", picture.get("height")]
    paper = luminance(background.attrib["fill"])
    for elements, least in (bars, 3), (picture.findall("{*}text"), 4.5):
        for fill in {element.attrib["fill"] for element in elements}:
            darker, lighter = sorted([paper, luminance(fill)])
            assert (lighter + 0.05) / (darker + 0.05) >= least


def test_no_service(tmp_path: Path, capsys: Capture) -> None:
    """Where nothing listens, the verdict is inconclusive, and the files say so."""
    files = ["--svg", f"{tmp_path}/svg", "--json", f"{tmp_path}/json"]
    assert main(["http://127.0.0.1:1", *files]) == 2
    verdict = "INCONCLUSIVE: no request succeeded: connection refused"
    assert capsys.readouterr().out == f"{verdict}\n"
    title = ElementTree.parse(tmp_path / "svg").findtext("{*}title")
    assert title == f"Eight simultaneous requests, 3 s of work each: {verdict}"
    report = json.loads((tmp_path / "json").read_text())
    assert (report["verdict"], report["smallest_step"]) == ("inconclusive", None)
    assert [response["problem"] for response in report["responses"]] == ["connection refused"] * 8


@pytest.mark.parametrize(
    ("response", "reason"),
    [
        ("HTTP/1.1 500 Oops\r\n\r\n", "500 Oops: ''"),
        ("HTTP/1.1 429 Wait\r\nRetry-After: 7\r\n\r\n", "all were rejected: 429, Retry-After: 7"),
        ("", "remote end closed connection without response"),
    ],
)
def test_all_fail_alike(service: Service, response: str, reason: str) -> None:
    """What is the same for all requests is printed once."""
    url, responses = service
    for _ in range(3):
        responses.put(response.encode())
    probe = run_probe(url, "-n", "3")
    assert probe.returncode == 2
    assert probe.stdout == f"INCONCLUSIVE: no request succeeded: {reason}\n"


def test_not_all_fail_alike(service: Service) -> None:
    """Failures are printed as soon as one response differs."""
    url, responses = service
    failed, passed = "failed: 500 Oops: ''\n", f"{'█' * 16} 3.000\n"
    with start_probe(url, "-n", "4") as probe:
        assert probe.stdout
        for response in (b"HTTP/1.1 500 Oops\r\n\r\n", ok('{"elapsed": 3}')):
            responses.put(response)
        lines = [probe.stdout.readline() for _ in range(2)]
        assert sorted(lines) == [failed, passed]
        responses.put(b"HTTP/1.1 500 Oops\r\n\r\n")
        assert probe.stdout.readline() == failed
        responses.put(b"HTTP/1.1 500 Oops\r\n\r\n")
        verdict = "FAIL: 3 of 4 requests failed: 500 Oops: ''\n"
        assert (probe.stdout.read(), probe.wait()) == (failed + verdict, 1)


def test_not_this_service(service: Service) -> None:
    """What another service responds is in the line of its failure."""
    url, responses = service
    bodies = ["<h1>It works!</h1>", "3"]
    bodies += [f'{{"elapsed": {wrong}}}' for wrong in ("true", "NaN", "-1")]
    for response in (*map(ok, bodies), b"HTTP/1.1 503 Full\r\n\r\n", b"\x1b[2J\r\n"):
        responses.put(response)
    probe = run_probe(url, "-n", "7")
    assert probe.returncode == 2
    for body in bodies:
        assert f'failed: 200, but no {{"elapsed": seconds}}: {body!r}\n' in probe.stdout
    assert "failed: 503 Full: ''\n" in probe.stdout
    assert "failed: BadStatusLine: \\x1b[2J\\r\\n\n" in probe.stdout


@pytest.mark.parametrize(
    ("response", "reason"),
    [
        ("500 \x1b[2J\r\n", "500 \\x1b[2J: ''"),
        ("503 Full\r\nRetry-After: \x1b[2J\r\n", "all were rejected: 503, Retry-After: \\x1b[2J"),
    ],
)
def test_escaped(
    service: Service, response: str, reason: str, tmp_path: Path, capsys: Capture
) -> None:
    """No control character of a response reaches the terminal or the picture."""
    url, responses = service
    for _ in range(2):
        responses.put(f"HTTP/1.1 {response}\r\n".encode())
    assert main([url, "-n", "2", "--svg", f"{tmp_path}/svg"]) == 2
    verdict = f"INCONCLUSIVE: no request succeeded: {reason}"
    assert capsys.readouterr().out == f"{verdict}\n"
    title = ElementTree.parse(tmp_path / "svg").findtext("{*}title")
    assert title == f"Two simultaneous requests, 3 s of work each: {verdict}"


def test_tls_failure(service: Service) -> None:
    """A failure of TLS is a line that says so."""
    probe = run_probe(service[0].replace("http:", "https:"), "-n", "2")
    assert probe.returncode == 2
    assert probe.stdout.startswith("INCONCLUSIVE: no request succeeded: SSLError: [SSL")
    assert probe.stdout.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "values", "message"),
    [
        (
            [],
            ["localhost:8000", "nonsense", "ftp://h", "http://h:99999", "http://[::1"],
            "argument URL: not a valid URL: {!r} (expected, e.g., http://localhost:8000)\n",
        ),
        (["http://h", "-n"], ["1", "many"], "argument -n: "),
        (["http://h", "--seconds"], ["0", "nan", "three"], "argument --seconds: "),
        (["http://h", "--svg"], ["/missing/svg", "/"], "cannot write: "),
        (["-n"], ["2"], "the following arguments are required: URL"),
    ],
)
def test_usage(options: list[str], values: list[str], message: str, capsys: Capture) -> None:
    """A wrong argument is named before any request, and the exit status is 2."""
    for value in values:
        with pytest.raises(SystemExit, match=r"^2$"):
            main([*options, value])
        out, err = capsys.readouterr()
        assert (out, message.format(value) in err) == ("", True)
