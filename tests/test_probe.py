"""The probe: what it prints, writes and returns, on services that keep the promise and others."""

import json
import signal
import socket
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from queue import SimpleQueue
from select import select
from subprocess import PIPE, STDOUT, CompletedProcess, Popen, run
from threading import Barrier, Thread
from xml.etree import ElementTree

import pytest

from tests.probe import Caller, judge, main
from tests.support.server import ROOT, UVICORN, serve

PROBE = (sys.executable, "-S", "-E", "-m", "tests.probe")
"""The probe without any installed package."""

LIMIT = 20.0
"""Seconds after which what does not come fails the test."""

Capture = pytest.CaptureFixture[str]
Service = tuple[str, SimpleQueue[bytes]]


@pytest.fixture
def service() -> Iterator[Service]:
    """Start a server; return its URL, and a queue of what it answers once that is put there."""
    answers: SimpleQueue[bytes] = SimpleQueue()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.wfile.write(answers.get(timeout=LIMIT))

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever, args=[0.01]).start()
        yield f"http://127.0.0.1:{server.server_port}", answers
        server.shutdown()


def run_probe(*arguments: str) -> CompletedProcess[str]:
    command = [*PROBE, *arguments]
    return run(command, cwd=ROOT, capture_output=True, encoding="utf-8", timeout=LIMIT)


def ok(body: str) -> bytes:
    return f"HTTP/1.1 200 OK\r\n\r\n{body}".encode()


def served(*elapsed: float) -> list[Caller]:
    return [Caller(1, 200, seconds) for seconds in elapsed]


REFUSED = Caller(9, 503, retry_after="3")
FAILED = Caller(9, 500, problem="500 Internal Server Error: ''")


@pytest.mark.parametrize(
    ("answered", "verdict", "reason"),
    [
        (served(3.0, 6.0, 9.5), "kept", "the least of 2 steps is 3.0 s"),
        ([REFUSED, *served(3.0, 6.5)], "kept", "the least of 1 steps is 3.5 s"),
        (served(3.0, 5.75), "broken", "1 short of 3 s: the least of 1 steps is 2.75 s"),
        (served(3.25, 6.25), "kept", "the least of 1 steps is 3.0 s"),
        (served(2.9, 6.0), "broken", "the first answer took 2.9, less than 3 s"),
        ([FAILED, *served(3.0, 6.0)], "broken", "1 of 3 failed: 500 Internal Server Error: ''"),
        ([REFUSED, *served(3.0)], "unknown", "one caller was served: there is no step to judge"),
        ([REFUSED], "unknown", "no caller was served: all were refused"),
        ([FAILED], "unknown", "no caller was served: 500 Internal Server Error: ''"),
    ],
)
def test_verdict(answered: list[Caller], verdict: str, reason: str) -> None:
    """Kept is what was shown; a failure or a short step breaks it; the rest cannot be told."""
    assert judge(answered, 3.0) == (verdict, reason)


def test_kept(tmp_path: Path) -> None:
    """On a service that keeps its promise, three served and two told to come again: status 0."""
    options = f"-n 5 --seconds 0.5 --svg {tmp_path}/svg --json {tmp_path}/json".split()
    with serve(*UVICORN, "handler.main:app", WORK_SECONDS="0.5", MAX_WAITING="2") as server:
        probe = run_probe(server.url, *options)
    assert (probe.returncode, probe.stderr) == (0, "")
    assert probe.stdout.count("refused: 503, Retry-After: 1\n") == 2
    assert probe.stdout.count(f"{'█' * 13} ") == 3
    assert "\nkept: the least of 2 steps is 0.5" in probe.stdout
    assert len(ElementTree.parse(tmp_path / "svg").findall(".//{*}rect")) == 1 + 2 * 3
    report = json.loads((tmp_path / "json").read_text())
    assert (report["url"], report["verdict"]) == (f"{server.url}/test", "kept")
    assert report["least_step"] >= report["work_seconds"] == 0.5
    assert sorted(answer["status"] for answer in report["answers"]) == [200] * 3 + [503] * 2


def test_live(service: Service) -> None:
    """Each line is out before the next answer comes, and Ctrl+C ends the wait without a word."""
    url, answers = service
    call = [*PROBE, url, "-n", "4"]
    with Popen(call, cwd=ROOT, stdout=PIPE, stderr=STDOUT, encoding="utf-8") as probe:
        assert probe.stdout
        for elapsed, dots in (3, 0), (6.5, 19), (99, 48):
            answers.put(ok(f'{{"elapsed": {elapsed}}}'))
            assert probe.stdout.readline() == f"{'·' * dots}{'█' * 16} {elapsed:.3f}\n"
        probe.send_signal(signal.SIGINT)
        assert probe.wait(LIMIT / 2) == -signal.SIGINT
        assert probe.stdout.read() == ""


def test_connected_before_called(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    """All who can connect have before one calls, and who cannot holds no other back."""
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
    assert "failed: ConnectionRefusedError: no answer\n" in capsys.readouterr().out


def test_broken(service: Service, tmp_path: Path, capsys: Capture) -> None:
    """On a service that works on many calls at a time; a picture's title rounds no step up."""
    with serve(*UVICORN, "tests.benchmark.alternatives:unlocked", WORK_SECONDS="0.2") as server:
        assert main([server.url, "-n", "3", "--seconds", "0.2"]) == 1
    assert "\nbroken: " in capsys.readouterr().out
    url, answers = service
    answers.put(ok('{"elapsed": 3}'))
    answers.put(ok('{"elapsed": 5.9999}'))
    assert main([url, "-n", "2", "--svg", f"{tmp_path}/svg"]) == 1
    assert "2.999 s</text>" in (tmp_path / "svg").read_text()


def test_no_answer(tmp_path: Path, capsys: Capture) -> None:
    """Where nothing listens it cannot be told, and the files say so."""
    files = ["--svg", f"{tmp_path}/svg", "--json", f"{tmp_path}/json"]
    assert main(["http://127.0.0.1:1", *files]) == 2
    assert "unknown: no caller was served: ConnectionRefusedError: [" in capsys.readouterr().out
    assert "unknown: no caller was served" in (tmp_path / "svg").read_text()
    assert json.loads((tmp_path / "json").read_text())["least_step"] is None


def test_not_this_service(service: Service) -> None:
    """Where something else answers, the line says with what."""
    url, answers = service
    bodies = ["<h1>It works!</h1>", '{"elapsed": true}', '{"elapsed": NaN}', "3"]
    for answer in (*map(ok, bodies), b"HTTP/1.1 503 Full\r\n\r\n", b"\x1b[2J\r\n"):
        answers.put(answer)
    probe = run_probe(url, "-n", "6")
    assert probe.returncode == 2
    for body in bodies:
        assert f'failed: 200, but no {{"elapsed": seconds}}: {body!r}\n' in probe.stdout
    assert "failed: 503 Full: ''\n" in probe.stdout
    assert "failed: BadStatusLine: \\x1b[2J\\r\\n\n" in probe.stdout


def test_tls_failure(service: Service) -> None:
    """A failure of TLS is a line that says so."""
    probe = run_probe(service[0].replace("http:", "https:"), "-n", "2")
    assert probe.returncode == 2
    assert probe.stdout.count("failed: SSLError: [SSL") == 2


@pytest.mark.parametrize(
    ("options", "values", "message"),
    [
        ([], ["nonsense", "ftp://h", "http://h:99999", "http://[::1"], "is no URL such as http://"),
        (["http://h", "-n"], ["1", "many"], "argument -n: "),
        (["http://h", "--seconds"], ["0", "nan", "three"], "argument --seconds: "),
        (["http://h", "--svg"], ["/missing/svg", "/"], "cannot write: "),
        (["-n"], ["2"], "the following arguments are required: URL"),
    ],
)
def test_usage(options: list[str], values: list[str], message: str, capsys: Capture) -> None:
    """A wrong argument is named before any call, and the exit status is 2."""
    for value in values:
        with pytest.raises(SystemExit, match=r"^2$"):
            main([*options, value])
        out, err = capsys.readouterr()
        assert (out, message in err) == ("", True)
