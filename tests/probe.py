"""Does a deployment keep its promise?  Python 3.11 or later tells, and needs nothing else:

python3 -m tests.probe URL [-n 8] [--seconds 3] [--svg FILE] [--json FILE]

Calls the URL n times at once; prints each answer as it comes, as a staircase, and then a verdict.
Exit status: 0 the promise was kept, 1 it was broken, 2 it could not be told.
"""

import argparse
import json
import math
import re
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import asdict, dataclass
from html import escape
from http.client import HTTPConnection, HTTPResponse, HTTPSConnection
from itertools import pairwise
from pathlib import Path
from queue import SimpleQueue
from threading import Barrier, Thread
from urllib.parse import SplitResult, quote, urlsplit

from tests.support.assertions import is_short

CONNECT_TIMEOUT = 10.0
"""Seconds after which a caller that cannot connect gives up: until then the others wait for it."""

TIMEOUT = 120.0
"""Seconds after which a caller without an answer gives up."""

EXIT_STATUS = {"kept": 0, "broken": 1, "unknown": 2}


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
            text = repr(str(error))[1:-1]  # it may quote what is no HTTP
            caller.problem = f"{type(error).__name__}: {text or 'no answer'}"
        caller.seconds = time.monotonic() - began
        answered.put(caller)

    for number in range(1, calls + 1):
        Thread(target=call, args=[Caller(number)], daemon=True).start()
    for _ in range(calls):
        yield answered.get()


def read_answer(caller: Caller, answer: HTTPResponse) -> None:
    """Fill in what a caller was answered; to be told when to come again is no problem."""
    caller.status = answer.status
    caller.retry_after = answer.getheader("Retry-After")
    body = answer.read()
    text = repr(body.decode(errors="replace")[:60])
    if answer.status == 200:
        with suppress(ValueError, TypeError, LookupError):
            elapsed = json.loads(body, parse_int=float)["elapsed"]
            if isinstance(elapsed, float) and math.isfinite(elapsed):
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
        return f"refused: {caller.status}, Retry-After: {caller.retry_after}"
    turn = 64 / calls  # columns
    wait = round(turn * min(caller.elapsed / seconds - 1, calls - 1))
    return f"{'·' * wait}{'█' * math.ceil(turn)} {caller.elapsed:.3f}"


def judge(answered: list[Caller], seconds: float) -> tuple[str, str]:
    """Return the verdict on callers in order of their answers, and the reason in one sentence."""
    elapsed = [caller.elapsed for caller in answered if caller.elapsed is not None]
    problems = [caller.problem for caller in answered if caller.problem]
    if not elapsed:
        return "unknown", f"no caller was served: {(problems or ['all were refused'])[0]}"
    if problems:
        return "broken", f"{len(problems)} of {len(answered)} failed: {problems[0]}"
    if elapsed[0] < seconds:
        return "broken", f"the first answer took {elapsed[0]}, less than {seconds:g} s"
    if len(elapsed) == 1:
        return "unknown", "one caller was served: there is no step to judge"
    short = sum(is_short(*step, seconds) for step in pairwise(elapsed))
    least = f"the least of {len(elapsed) - 1} steps is {least_step(elapsed)} s"
    return ("broken", f"{short} short of {seconds:g} s: {least}") if short else ("kept", least)


def least_step(elapsed: list[float]) -> float | None:
    """Return the least difference between an answer's elapsed and the one before, in seconds."""
    return min((later - earlier for earlier, later in pairwise(elapsed)), default=None)


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
        picture += text(28 + scale * end, top + 16, "#333333", f"{end:.3f} s")
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
    answered = []
    try:
        for file in filter(None, (options.svg, options.json)):
            file.open("a").close()  # to fail before the calls, not after them
        for caller in probe(options.url, options.n):
            answered.append(caller)
            print(line(caller, options.n, options.seconds), flush=True)
        verdict, reason = judge(answered, options.seconds)
        print(f"{verdict}: {reason}")
        elapsed = [caller.elapsed for caller in answered if caller.elapsed is not None]
        if options.svg:
            # Cut to milliseconds, not rounded: a short step must not read as a whole one.
            title = f"{verdict}: " + re.sub(r"(\.\d{3})\d+", r"\1", reason)
            title = f"{options.n} callers at once, {title}"
            options.svg.write_text(svg(elapsed, options.seconds, title), encoding="utf-8")
        if options.json:
            report = {
                "url": options.url.geturl(),
                "work_seconds": options.seconds,
                "verdict": verdict,
                "reason": reason,
                "least_step": least_step(elapsed),
                "answers": [asdict(caller) for caller in answered],
            }
            options.json.write_text(json.dumps(report, indent=2) + "\n")
    except OSError as error:
        parser.error(f"cannot write: {error}")
    return EXIT_STATUS[verdict]


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl+C ends it, whatever its threads wait for
    sys.exit(main())
