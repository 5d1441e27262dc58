"""Draining when told to stop, and being the only worker."""

import asyncio
import multiprocessing
import signal
import sys
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from handler.process import GRACE, STARTUP_FAILURE, draining, refuse_workers


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    assert {number: signal.getsignal(number) for number in handlers} == handlers
    assert signal.SIGTERM not in signal.pthread_sigmask(signal.SIG_BLOCK, ())


@pytest.mark.parametrize("times", [1, 2, 3])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_draining(
    number: signal.Signals, times: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stop signal closes the gate at once; the server is told after a grace.

    From the second time on the server is told at once, as often as the signal came.
    """
    told: asyncio.Queue[int] = asyncio.Queue()
    blocked: list[set[int]] = []
    monkeypatch.setattr(signal, "pthread_sigmask", lambda how, mask: blocked.append(mask))
    before = signal.signal(number, lambda number, frame: told.put_nowait(number))
    closed = asyncio.Event()
    loop = asyncio.get_running_loop()
    async with draining(closed.set)(None):
        began = loop.time()
        for _ in range(times):
            signal.raise_signal(number)
        await closed.wait()
        assert [await told.get() for _ in range(max(1, times - 1))]
        assert (loop.time() - began >= GRACE) is (times == 1)
    assert told.empty()
    assert blocked == ([{signal.SIGTERM}] if number is signal.SIGTERM else [])
    signal.raise_signal(number)
    assert await told.get() == number
    signal.signal(number, before)


async def test_without_a_signal_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where signals cannot be blocked, and where the server has no handler, it drains as well."""
    monkeypatch.delattr(signal, "pthread_sigmask")
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    closed = asyncio.Event()
    async with draining(closed.set)(None):
        signal.raise_signal(signal.SIGTERM)
        await closed.wait()
    monkeypatch.undo()
    assert signal.signal(signal.SIGTERM, before) is signal.SIG_IGN


async def test_in_a_thread() -> None:
    """In any other than the main thread, where signals do not come, the signals are left alone."""

    async def lifespan() -> None:
        before = signal.getsignal(signal.SIGTERM)
        async with draining(pytest.fail)(None):
            assert signal.getsignal(signal.SIGTERM) is before

    await asyncio.to_thread(asyncio.run, lifespan())


@pytest.mark.parametrize("workers", [2, 8])
def test_several_workers(
    workers: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One of several uvicorn workers exits with one line."""
    kwargs = {"config": SimpleNamespace(workers=workers)}
    monkeypatch.setattr(multiprocessing.current_process(), "_kwargs", kwargs, raising=False)
    with pytest.raises(SystemExit) as exit_:
        refuse_workers()
    assert exit_.value.code == STARTUP_FAILURE
    assert capsys.readouterr().err == (
        f"handler: {workers} workers would work on {workers} calls at a time; "
        "start one: --workers 1, and no WEB_CONCURRENCY\n"
    )


def test_a_worker_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that is no one's worker goes on, and so does the one worker of `--reload`."""
    refuse_workers()
    kwargs = {"config": SimpleNamespace(workers=1)}
    monkeypatch.setattr(multiprocessing.current_process(), "_kwargs", kwargs, raising=False)
    refuse_workers()
    monkeypatch.delitem(sys.modules, "multiprocessing")
    refuse_workers()
