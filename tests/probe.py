"""Does a deployment keep its promise?  Python 3.11 or later tells, and needs nothing else:

python3 -m tests.probe URL [-n 8] [--seconds 3] [--svg FILE] [--json FILE]

Calls the URL n times at once; prints each answer as it comes, as a staircase, and then a verdict.
Exit status: 0 PASS, 1 FAIL, 2 INCONCLUSIVE.
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
from threading import Barrier, Thread
from urllib.parse import SplitResult, quote, urlsplit

from tests.support.assertions import is_short

CONNECT_TIMEOUT = 10.0
"""Seconds after which a caller that cannot connect gives up: until then the others wait for it."""

TIMEOUT = 120.0
"""Seconds after which a caller without an answer gives up."""

EXIT_STATUS = {"pass": 0, "fail": 1, "inconclusive": 2}


@dataclass
class Caller:
    """One call: what became of it, and how many seconds after all were connected."""

    number: int
    status: int | None = None
    elapsed: float | None = None
    problem: str | None = None
    retry_after: str | None = None
    seconds: float | None = None


def probe(url: SplitResult, calls: int) -> Iterator[Caller]:
    """Call `url` so many times at once, and yield each caller when its answer comes."""
    kind = HTTPSConnection if url.scheme == "https" else HTTPConnection
    target = quote(url.path + (url.query and f"?{url.query}"), safe="%/?:@!$&'()*+,;=")
    connected = Barrier(calls)
    answered: SimpleQueue[Caller] = SimpleQueue()

    def call(caller: Caller) -> None:
        try:
            try:
                connection = kind(url.netloc, timeout=CONNECT_TIMEOUT)
                connection.connect()
            finally:
                connected.wait()  # one that failed, too: the others wait for all
                began = time.monotonic()
            with closing(connection):
                connection.sock.settimeout(TIMEOUT)
                connection.request("GET", target)
                read_answer(caller, connection.getresponse())
        except Exception as error:  # any: a caller that is not put would be waited for
            caller.problem = explain(error)
        caller.seconds = time.monotonic() - began
        answered.put(caller)

    for number in range(1, calls + 1):
        Thread(target=call, args=[Caller(number)], daemon=True).start()
    for _ in range(calls):
        yield answered.get()


def explain(error: Exception) -> str:
    """Return why a request has no response: in the operating system's words, where it has any."""
    text = getattr(error, "strerror", None) or str(error)
    text = repr(text)[1:-1]  # it may quote what is no HTTP
    if text and isinstance(error, OSError) and not isinstance(error, SSLError):
        return text[0].lower() + text[1:]
    return f"{type(error).__name__}: {text or 'no response'}"


def read_answer(caller: Caller, answer: HTTPResponse) -> None:
    """Fill in what a caller was answered; to be told when to come again is no problem."""
    caller.status = answer.status
    caller.retry_after = answer.getheader("Retry-After")
    body = answer.read()
    text = repr(body.decode(errors="replace")[:60])
    if answer.status == 200:
        with suppress(ValueError, TypeError, LookupError):
            elapsed = json.loads(body, parse_int=float)["elapsed"]
            if isinstance(elapsed, float) and 0 <= elapsed < math.inf:
                caller.elapsed = elapsed
        if caller.elapsed is None:
            caller.problem = f'200, but no {{"elapsed": seconds}}: {text}'
    elif answer.status not in (429, 503) or caller.retry_after is None:
        caller.problem = f"{answer.status} {answer.reason}: {text}"


def line(caller: Caller, calls: int, seconds: float) -> str:
    """Return a step of the staircase, dots for the wait and blocks for the work, or what failed."""
    if caller.problem:
        return f"failed: {caller.problem}"
    if caller.elapsed is None:
        return f"rejected: {caller.status}, Retry-After: {caller.retry_after}"
    turn = 64 / calls  # columns
    wait = round(turn * min(caller.elapsed / seconds - 1, calls - 1))
    return f"{'·' * wait}{'█' * math.ceil(turn)} {cut(caller.elapsed, 3)}"


def printable(text: str) -> str:
    """Return `text` as the terminal's encoding can print it: if need be, the staircase in ASCII."""
    encoding = sys.stdout.encoding or "utf-8"
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        text = text.translate(str.maketrans("·█", ".#"))
        return text.encode(encoding, "backslashreplace").decode(encoding)
    return text


def print_live(answers: Iterable[Caller], calls: int, seconds: float) -> list[Caller]:
    """Print each answer when it comes; if all fail alike, none: the verdict says it once."""
    answered, lines, printed = [], [], 0
    for caller in answers:
        answered.append(caller)
        lines.append(line(caller, calls, seconds))
        if caller.elapsed is not None or len(set(lines)) > 1:
            print(printable("\n".join(lines[printed:])), flush=True)
            printed = len(lines)
    return answered


def judge(answered: list[Caller], seconds: float) -> tuple[str, str]:
    """Return the verdict on callers in order of their answers, and the reason in one sentence."""
    elapsed = [caller.elapsed for caller in answered if caller.elapsed is not None]
    problems = [caller.problem for caller in answered if caller.problem]
    least = f"{seconds!r} s".replace(".0 s", " s")
    if not elapsed:
        first = f"{answered[0].status}, Retry-After: {answered[0].retry_after}"
        reason = problems[0] if problems else f"all were rejected: {first}"
        return "inconclusive", f"no request succeeded: {reason}"
    if problems:
        return "fail", f"{len(problems)} of {len(answered)} requests failed: {problems[0]}"
    if elapsed[0] < seconds:
        return "fail", f"the first response took {cut(elapsed[0])} s, less than {least}"
    smallest = smallest_step(elapsed)
    if smallest is None:
        return "inconclusive", "only one request succeeded: there is no step to judge"
    short = sum(is_short(*step, seconds) for step in pairwise(elapsed))
    steps = "1 step" if len(elapsed) == 2 else f"{len(elapsed) - 1} steps"
    if short:
        count = f"{short} of {steps} {'is' if short == 1 else 'are'}"
        return "fail", f"{count} shorter than {least} (smallest: {cut(smallest)} s)"
    return "pass", f"smallest of {steps} is {cut(smallest)} s (at least {least})"


def smallest_step(elapsed: list[float]) -> float | None:
    """Return the smallest difference between an answer's elapsed and the one before, in seconds."""
    return min((later - earlier for earlier, later in pairwise(elapsed)), default=None)


def cut(seconds: float, decimals: int = 6) -> str:
    """Return `seconds` cut to `decimals`, never rounded up: what is short must not look whole."""
    unit = Decimal(1).scaleb(-decimals)
    return f"{Decimal(repr(seconds)).quantize(unit, ROUND_FLOOR, Context(prec=400)):f}"


def svg(elapsed: list[float], seconds: float, title: str) -> str:
    """Draw the staircase as a picture."""
    scale = 560 / max([seconds, *elapsed])
    height = 80 + 30 * len(elapsed)
    bar = '<rect x="{:.1f}" y="{}" width="{:.1f}" height="{}" fill="{}"/>\n'.format
    text = '<text x="{:.1f}" y="{}" fill="{}">{}</text>\n'.format
    picture = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 720 {height}" '
        'font-family="system-ui, sans-serif" font-size="14">\n'
    )
    picture += bar(0, 0, 720, height, "#ffffff") + text(20, 28, "#333333", escape(title))
    for index, end in enumerate(elapsed):
        top, begin = 44 + 30 * index, max(0, end - seconds)
        picture += bar(20, top, scale * begin, 22, "#e6e9ef")
        picture += bar(20 + scale * begin, top, scale * (end - begin), 22, "#2f7d5b")
        picture += text(28 + scale * end, top + 16, "#333333", f"{cut(end, 3)} s")
    legend = "grey: waiting in line; green: its turn"
    return picture + text(20, height - 14, "#777777", legend) + "</svg>\n"


def endpoint_url(text: str) -> SplitResult:
    """Return the URL of `GET /test` on the service that `text` names."""
    with suppress(ValueError):
        url = urlsplit(text)
        if url.scheme in ("http", "https") and url.hostname and url.port != 0:
            path = url.path.removesuffix("/").removesuffix("/test") + "/test"
            return url._replace(path=path, fragment="")
    raise argparse.ArgumentTypeError(f"{text!r} is no URL such as http://localhost:8000")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python3 -m tests.probe", description="Does the service at URL keep its promise?"
    )
    parser.add_argument("url", metavar="URL", type=endpoint_url)
    parser.add_argument("-n", type=int, default=8, help="how many callers, 8 by default")
    parser.add_argument("--seconds", type=float, default=3.0, help="a turn's work, 3 by default")
    parser.add_argument("--svg", type=Path, metavar="FILE", help="draw the staircase")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write down every answer")
    options = parser.parse_args(arguments)
    if options.n < 2:
        parser.error(f"argument -n: {options.n} must be a whole number, 2 or more")
    if not 0 < options.seconds < math.inf:
        parser.error(f"argument --seconds: {options.seconds} must be a finite number above 0")
    try:
        for file in filter(None, (options.svg, options.json)):
            file.open("a").close()  # to fail before the calls, not after them
        answered = print_live(probe(options.url, options.n), options.n, options.seconds)
        verdict, reason = judge(answered, options.seconds)
        print(printable(f"{verdict.upper()}: {reason}"))
        elapsed = [caller.elapsed for caller in answered if caller.elapsed is not None]
        if options.svg:
            title = f"{options.n} requests at once, {verdict.upper()}: {reason}"
            options.svg.write_text(svg(elapsed, options.seconds, title), encoding="utf-8")
        if options.json:
            report = {
                "url": options.url.geturl(),
                "work_seconds": options.seconds,
                "verdict": verdict,
                "reason": reason,
                "smallest_step": smallest_step(elapsed),
                "responses": [asdict(caller) for caller in answered],
            }
            options.json.write_text(json.dumps(report, indent=2) + "\n")
    except OSError as error:
        parser.error(f"cannot write: {error}")
    return EXIT_STATUS[verdict]


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl+C ends it, whatever its threads wait for
    sys.exit(main())
