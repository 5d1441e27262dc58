"""Does a service process its requests one by one, each as long as it should?

python3 -m tests.probe URL [-n 8] [--seconds 3] [--svg FILE] [--json FILE]

Sends n requests to the URL simultaneously; prints each response when it comes, as a staircase, and
then a verdict. Exit status: 0 PASS, 1 FAIL, 2 INCONCLUSIVE.
Needs Python 3.11 or later, and nothing else.
"""

import argparse
import json
import math
import signal
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import closing, suppress
from dataclasses import asdict, dataclass
from decimal import ROUND_FLOOR, Context, Decimal
from html import escape
from http.client import HTTPConnection, HTTPResponse, HTTPSConnection
from itertools import pairwise
from pathlib import Path
from queue import SimpleQueue
from ssl import SSLError
from textwrap import wrap
from threading import Barrier, Thread
from urllib.parse import SplitResult, quote, urlsplit

from tests.support.assertions import is_short

CONNECT_TIMEOUT = 10.0
"""Seconds after which a client that cannot connect gives up: the others wait for it until then."""

TIMEOUT = 120.0
"""Seconds after which a client without a response gives up."""

PAPER, INK, WAITING, WORKING = "#ffffff", "#1f2328", "#818b98", "#1a7f37"
"""A picture's colours; on paper, all have a contrast of 3 or more."""

EXIT_STATUS = {"pass": 0, "fail": 1, "inconclusive": 2}


@dataclass
class Response:
    """One client's response, or its problem, and how many seconds after all had connected."""

    number: int
    status: int | None = None
    elapsed: float | None = None
    problem: str | None = None
    retry_after: str | None = None
    seconds: float | None = None


def probe(url: SplitResult, clients: int) -> Iterator[Response]:
    """Send a request from each of `clients` simultaneously; yield each response when it comes."""
    kind = HTTPSConnection if url.scheme == "https" else HTTPConnection
    target = quote(url.path + (url.query and f"?{url.query}"), safe="%/?:@!$&'()*+,;=")
    connected = Barrier(clients)
    responses: SimpleQueue[Response] = SimpleQueue()

    def send_request(response: Response) -> None:
        try:
            try:
                connection = kind(url.netloc, timeout=CONNECT_TIMEOUT)
                connection.connect()
            finally:
                connected.wait()  # after a failure, too: the other clients wait for all
                began = time.monotonic()
            with closing(connection):
                connection.sock.settimeout(TIMEOUT)
                connection.request("GET", target)
                read_response(response, connection.getresponse())
        except Exception as error:  # any: a response that is not put would be waited for
            response.problem = explain(error)
        response.seconds = time.monotonic() - began
        responses.put(response)

    for number in range(1, clients + 1):
        Thread(target=send_request, args=[Response(number)], daemon=True).start()
    for _ in range(clients):
        yield responses.get()


def explain(error: Exception) -> str:
    """Return why a request has no response: in the operating system's words, where it has any."""
    text = escaped(getattr(error, "strerror", None) or str(error))  # it may quote what is no HTTP
    if text and isinstance(error, OSError) and not isinstance(error, SSLError):
        return text[0].lower() + text[1:]
    return f"{type(error).__name__}: {text or 'no response'}"


def escaped(text: str | None) -> str | None:
    """Return `text` without control characters: neither a terminal nor a picture may obey them."""
    return text and repr(text)[1:-1]


def read_response(response: Response, received: HTTPResponse) -> None:
    """Fill in what a client received; a rejection that says when to try again is no problem."""
    response.status = received.status
    response.retry_after = escaped(received.getheader("Retry-After"))
    body = received.read()
    text = repr(body.decode(errors="replace")[:60])
    if received.status == 200:
        with suppress(ValueError, TypeError, LookupError):
            elapsed = json.loads(body, parse_int=float)["elapsed"]
            if isinstance(elapsed, float) and 0 <= elapsed < math.inf:
                response.elapsed = elapsed
        if response.elapsed is None:
            response.problem = f'200, but no {{"elapsed": seconds}}: {text}'
    elif received.status not in (429, 503) or response.retry_after is None:
        response.problem = f"{received.status} {escaped(received.reason)}: {text}"


def line(response: Response, clients: int, seconds: float) -> str:
    """Return a step of the staircase, dots for the wait and blocks for the work, or what failed."""
    if response.problem:
        return f"failed: {response.problem}"
    if response.elapsed is None:
        return f"rejected: {response.status}, Retry-After: {response.retry_after}"
    work = 64 / clients  # columns
    wait = round(work * min(response.elapsed / seconds - 1, clients - 1))
    return f"{'·' * wait}{'█' * math.ceil(work)} {cut(response.elapsed, 3)}"


def printable(text: str) -> str:
    """Return `text` as the terminal's encoding can print it: if need be, the staircase in ASCII."""
    encoding = sys.stdout.encoding or "utf-8"
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        text = text.translate(str.maketrans("·█", ".#"))
        return text.encode(encoding, "backslashreplace").decode(encoding)
    return text


def print_live(coming: Iterable[Response], clients: int, seconds: float) -> list[Response]:
    """Print each response when it comes; if all fail alike, none: the verdict says it once."""
    responses, lines, printed = [], [], 0
    for response in coming:
        responses.append(response)
        lines.append(line(response, clients, seconds))
        if response.elapsed is not None or len(set(lines)) > 1:
            print(printable("\n".join(lines[printed:])), flush=True)
            printed = len(lines)
    return responses


def judge(responses: list[Response], seconds: float) -> tuple[str, str]:
    """Return the verdict on responses in the order they came, and the reason in one sentence."""
    elapsed = [response.elapsed for response in responses if response.elapsed is not None]
    problems = [response.problem for response in responses if response.problem]
    required = f"{plain(seconds)} s"
    if not elapsed:
        first = f"{responses[0].status}, Retry-After: {responses[0].retry_after}"
        reason = problems[0] if problems else f"all were rejected: {first}"
        return "inconclusive", f"no request succeeded: {reason}"
    if problems:
        return "fail", f"{len(problems)} of {len(responses)} requests failed: {problems[0]}"
    if elapsed[0] < seconds:
        return "fail", f"the first response took {cut(elapsed[0])} s, less than {required}"
    smallest = smallest_step(elapsed)
    if smallest is None:
        return "inconclusive", "only one request succeeded: there is no step to judge"
    short = sum(is_short(*step, seconds) for step in pairwise(elapsed))
    steps = "1 step" if len(elapsed) == 2 else f"{len(elapsed) - 1} steps"
    if short:
        count = f"{short} of {steps} {'is' if short == 1 else 'are'}"
        return "fail", f"{count} shorter than {required} (smallest: {cut(smallest)} s)"
    return "pass", f"smallest of {steps} is {cut(smallest)} s (at least {required})"


def smallest_step(elapsed: list[float]) -> float | None:
    """Return by how many seconds a response's elapsed exceeds the one before, at the least."""
    return min((later - earlier for earlier, later in pairwise(elapsed)), default=None)


def plain(seconds: float) -> str:
    """Return `seconds` with all its digits, as a person would write it: 3 and 0.3."""
    return repr(seconds).removesuffix(".0")


def cut(seconds: float, decimals: int = 6) -> str:
    """Return `seconds` cut to `decimals`, never rounded up: what is short must not look whole."""
    unit = Decimal(1).scaleb(-decimals)
    return f"{Decimal(repr(seconds)).quantize(unit, ROUND_FLOOR, Context(prec=400)):f}"


def caption(clients: int, seconds: float, outcome: str) -> str:
    """Return what a picture shows, in plain words."""
    number = dict(enumerate(["Two", "Three", "Four", "Five", "Six", "Seven", "Eight", "Nine"], 2))
    requests = f"{number.get(clients, clients)} simultaneous requests"
    return f"{requests}, {plain(seconds)} s of work each: {outcome}"


def svg(elapsed: list[float], seconds: float, title: str) -> str:
    """Draw the staircase, 480 px wide, on a background of its own: the page may be dark."""
    scale = 372 / max([seconds, *elapsed])
    lines = wrap(title, 68)
    top = 24 + 16 * len(lines)
    height = top + 22 * len(elapsed) + 30
    bar = '<rect x="{:.1f}" y="{}" width="{:.1f}" height="{}" fill="{}"/>\n'.format
    text = '<text x="{:.1f}" y="{}" fill="{}">{}</text>\n'.format
    picture = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="480" height="{height}" '
        f'viewBox="0 0 480 {height}" font-family="system-ui, sans-serif" font-size="12">\n'
        f"<title>{escape(title)}</title>\n"
        f'<rect width="480" height="{height}" rx="6" fill="{PAPER}"/>\n'
    )
    for number, words in enumerate(lines):
        picture += text(16, 26 + 16 * number, INK, escape(words))
    for number, end in enumerate(elapsed):
        y, begin = top + 22 * number, max(0, end - seconds)
        picture += bar(16, y + 6, scale * begin, 4, WAITING)
        picture += bar(16 + scale * begin, y, scale * (end - begin), 16, WORKING)
        picture += text(22 + scale * end, y + 12, INK, f"{cut(end, 3)} s")
    picture += bar(16, height - 20, 16, 4, WAITING) + text(38, height - 14, INK, "waiting")
    picture += bar(100, height - 26, 16, 16, WORKING) + text(122, height - 14, INK, "working")
    return picture + "</svg>\n"


def endpoint_url(text: str) -> SplitResult:
    """Return the URL of `GET /test` on the service that `text` names."""
    with suppress(ValueError):
        url = urlsplit(text)
        if url.scheme in ("http", "https") and url.hostname and url.port != 0:
            path = url.path.removesuffix("/").removesuffix("/test") + "/test"
            return url._replace(path=path, fragment="")
    expected = "expected, e.g., http://localhost:8000"
    raise argparse.ArgumentTypeError(f"not a valid URL: {text!r} ({expected})")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python3 -m tests.probe",
        description="Does the service at URL process its requests one by one?",
    )
    parser.add_argument("url", metavar="URL", type=endpoint_url)
    parser.add_argument("-n", type=int, default=8, help="how many requests, 8 by default")
    parser.add_argument(
        "--seconds", type=float, default=3.0, help="duration of the work, 3 by default"
    )
    parser.add_argument("--svg", type=Path, metavar="FILE", help="draw the staircase")
    parser.add_argument("--json", type=Path, metavar="FILE", help="save all responses")
    options = parser.parse_args(arguments)
    if options.n < 2:
        parser.error(f"argument -n: {options.n} must be a whole number, 2 or more")
    if not 0 < options.seconds < math.inf:
        parser.error(f"argument --seconds: {options.seconds} must be a finite number above 0")
    try:
        for file in filter(None, (options.svg, options.json)):
            file.open("a").close()  # to fail before the requests, not after them
        responses = print_live(probe(options.url, options.n), options.n, options.seconds)
        verdict, reason = judge(responses, options.seconds)
        print(printable(f"{verdict.upper()}: {reason}"))
        elapsed = [response.elapsed for response in responses if response.elapsed is not None]
        smallest = smallest_step(elapsed)
        if options.svg:
            outcome = f"{verdict.upper()}: {reason}"
            if verdict == "pass" and smallest is not None:
                outcome = f"smallest step {cut(smallest, 3)} s"
            title = caption(options.n, options.seconds, outcome)
            options.svg.write_text(svg(elapsed, options.seconds, title), encoding="utf-8")
        if options.json:
            report = {
                "url": options.url.geturl(),
                "work_seconds": options.seconds,
                "verdict": verdict,
                "reason": reason,
                "smallest_step": smallest,
                "responses": [asdict(response) for response in responses],
            }
            options.json.write_text(json.dumps(report, indent=2) + "\n")
    except OSError as error:
        parser.error(f"cannot write: {error}")
    return EXIT_STATUS[verdict]


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl+C ends it, whatever its threads wait for
    sys.exit(main())
