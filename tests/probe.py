"""Does a deployment keep its promise?  python -m tests.probe URL [-n 8] [--svg FILE] [--json FILE]

Calls the URL n times at once, shows every caller, then the staircase of `elapsed` and a verdict.
How long a turn works is read as the service reads it: WORK_SECONDS, 3 by default.

Exit status: 0 the promise was kept, 1 it was broken, 2 it could not be told.
"""

import argparse
import asyncio
import json
import math
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from enum import IntEnum
from itertools import pairwise
from pathlib import Path
from xml.sax.saxutils import escape as escape_xml

import httpx
from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from handler.settings import Settings
from tests.doors import is_short

TIMEOUT = 120.0
"""Seconds after which a caller without an answer gives up."""

REFUSALS = (429, 503)
"""Statuses by which a caller is told to come again: no promise is broken by them."""


class Verdict(IntEnum):
    KEPT = 0
    BROKEN = 1
    UNKNOWN = 2


@dataclass
class Caller:
    """One call: what became of it, and after how many seconds."""

    number: int
    status: int | None = None
    elapsed: float | None = None
    problem: str | None = None
    seconds: float | None = None

    def __str__(self) -> str:
        if self.seconds is None:
            return "waiting"
        if self.elapsed is not None:
            return f"{self.status}, elapsed {self.elapsed:.6f}"
        return self.problem or f"{self.status}, told to come again"


async def probe(url: str, calls: int, changed: Callable[[Caller], None]) -> list[Caller]:
    """Call `url` so many times at once, and return the callers in order of their answers."""
    callers = [Caller(number) for number in range(1, calls + 1)]
    answered: list[Caller] = []
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(timeout=TIMEOUT, limits=limits) as client:
        began = time.monotonic()

        async def call(caller: Caller) -> None:
            try:
                read_answer(caller, await client.get(url))
            except httpx.HTTPError as error:
                caller.problem = f"{type(error).__name__}: {error or 'no answer'}"
            caller.seconds = time.monotonic() - began
            answered.append(caller)
            changed(caller)

        await asyncio.gather(*map(call, callers))
    return answered


def read_answer(caller: Caller, answer: httpx.Response) -> None:
    """Fill in what a caller was answered."""
    caller.status = answer.status_code
    if answer.status_code == 200:
        try:
            elapsed = answer.json()["elapsed"]
        except (ValueError, TypeError, LookupError):
            elapsed = None
        if isinstance(elapsed, float) and math.isfinite(elapsed):
            caller.elapsed = elapsed
        else:
            caller.problem = f'200, but no {{"elapsed": seconds}}: {answer.text[:60]!r}'
    elif answer.status_code not in REFUSALS or "retry-after" not in answer.headers:
        caller.problem = f"{answer.status_code} {answer.reason_phrase}: {answer.text[:60]!r}"


def judge(answered: list[Caller], work_seconds: float) -> tuple[Verdict, str]:
    """Return the verdict on callers in order of their answers, and the reason in one sentence."""
    elapsed = [caller.elapsed for caller in answered if caller.elapsed is not None]
    problems = [caller.problem for caller in answered if caller.problem]
    if not elapsed:
        return Verdict.UNKNOWN, f"no caller was served: {(problems or ['all were refused'])[0]}"
    if problems:
        return Verdict.BROKEN, f"{len(problems)} of {len(answered)} failed: {problems[0]}"
    if elapsed[0] < work_seconds:
        return Verdict.BROKEN, f"the first answer took {elapsed[0]}, less than {work_seconds:g} s"
    if len(elapsed) == 1:
        return Verdict.UNKNOWN, "one caller was served: there is no step to judge"
    short = sum(is_short(*step, work_seconds) for step in pairwise(elapsed))
    least = f"the least of {len(elapsed) - 1} steps is {least_step(answered)} s"
    if short:
        return Verdict.BROKEN, f"{short} short of {work_seconds:g} s: {least}"
    return Verdict.KEPT, least


def least_step(answered: list[Caller]) -> float | None:
    """Return the least difference between an answer's elapsed and the one before, in seconds."""
    elapsed = [caller.elapsed for caller in answered if caller.elapsed is not None]
    return min((later - earlier for earlier, later in pairwise(elapsed)), default=None)


def table(callers: list[Caller]) -> Table:
    """Show every caller: what it is doing, or what it was told."""
    rows = Table("caller", "after", "answer", box=None)
    for caller in sorted(callers, key=lambda caller: caller.number):
        after = "" if caller.seconds is None else f"{caller.seconds:.2f} s"
        colour = "yellow" if caller.seconds is None else "red" if caller.problem else "green"
        rows.add_row(str(caller.number), after, f"[{colour}]{escape(str(caller))}")
    return rows


def staircase(answered: list[Caller], work_seconds: float, width: int) -> str:
    """Draw a line for each answer: dots for the wait, blocks for the work."""
    served = [caller for caller in answered if caller.elapsed is not None]
    longest = max(caller.elapsed or 0 for caller in served)
    lines = []
    for caller in served:
        assert caller.elapsed is not None
        end = round(width * caller.elapsed / longest)
        work = max(1, round(width * work_seconds / longest))
        lines.append(f"{'·' * (end - work)}{'█' * work} {caller.elapsed:.3f}")
    return "\n".join(lines)


def svg(answered: list[Caller], work_seconds: float, verdict: str) -> str:
    """Draw the staircase as a picture."""
    served = [caller.elapsed for caller in answered if caller.elapsed is not None]
    scale = 560 / max(served)
    row = 30
    height = 80 + row * len(served)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 720 {height}" '
        'font-family="system-ui, sans-serif" font-size="14">',
        f'<rect width="720" height="{height}" fill="#ffffff"/>',
        f'<text x="20" y="28" fill="#333333">{len(answered)} callers at once: '
        f"{escape_xml(verdict)}</text>",
    ]
    for index, elapsed in enumerate(served):
        top = 44 + row * index
        end = 20 + scale * elapsed
        begin = max(20.0, end - scale * work_seconds)
        parts += [
            f'<rect x="20" y="{top}" width="{begin - 20:.1f}" height="22" fill="#e6e9ef"/>',
            f'<rect x="{begin:.1f}" y="{top}" width="{end - begin:.1f}" height="22" '
            'fill="#2f7d5b"/>',
            f'<text x="{end + 8:.1f}" y="{top + 16}" fill="#333333">{elapsed:.3f} s</text>',
        ]
    parts.append(
        f'<text x="20" y="{height - 14}" fill="#777777">grey: waiting in line; '
        "green: its turn</text></svg>"
    )
    return "\n".join(parts) + "\n"


def endpoint_url(text: str) -> str:
    """Return the URL of `GET /test` on the service that `text` names."""
    try:
        url = httpx.URL(text)
    except httpx.InvalidURL as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no URL: {error}") from None
    if url.scheme not in ("http", "https") or not url.host or not 0 < (url.port or 80) < 65536:
        raise argparse.ArgumentTypeError(f"{text!r} is no URL such as http://localhost:8000")
    return str(url).removesuffix("/").removesuffix("/test") + "/test"


def callers_count(text: str) -> int:
    """Return how many callers `text` asks for."""
    if not text.isdecimal() or int(text) < 2:
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number, 2 or more")
    return int(text)


def main(arguments: list[str] | None = None) -> Verdict:
    parser = argparse.ArgumentParser(
        prog="python -m tests.probe", description="Does the service at URL keep its promise?"
    )
    parser.add_argument("url", metavar="URL", type=endpoint_url)
    parser.add_argument("-n", dest="calls", type=callers_count, default=8, help="how many callers")
    parser.add_argument("--svg", type=Path, metavar="FILE", help="draw the staircase")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write down every answer")
    options = parser.parse_args(arguments)
    work_seconds = Settings.load().work_seconds

    console = Console()
    if console.is_terminal:
        callers = {number: Caller(number) for number in range(1, options.calls + 1)}
        with Live(table(list(callers.values())), console=console) as live:

            def show(caller: Caller) -> None:
                callers[caller.number] = caller
                live.update(table(list(callers.values())))

            answered = asyncio.run(probe(options.url, options.calls, show))
    else:

        def say(caller: Caller) -> None:
            print(f"caller {caller.number}: after {caller.seconds:.2f} s: {caller}", flush=True)

        answered = asyncio.run(probe(options.url, options.calls, say))

    verdict, reason = judge(answered, work_seconds)
    served = any(caller.elapsed is not None for caller in answered)
    if served:
        print(staircase(answered, work_seconds, width=60))
    print(f"{verdict.name.lower()}: {reason}")
    if options.svg and served:
        options.svg.write_text(svg(answered, work_seconds, reason))
    if options.json:
        report = {
            "url": options.url,
            "work_seconds": work_seconds,
            "verdict": verdict.name.lower(),
            "reason": reason,
            "least_step": least_step(answered),
            "answers": [asdict(caller) for caller in answered],
        }
        options.json.write_text(json.dumps(report, indent=2) + "\n")
    return verdict


if __name__ == "__main__":
    sys.exit(main())
