"""Being the only worker."""

import multiprocessing
import sys
from types import SimpleNamespace

import pytest

from handler.workers import refuse_workers


def be_one_of(workers: int, monkeypatch: pytest.MonkeyPatch, *, reload: bool = False) -> None:
    """Let this process look like one of so many workers of uvicorn's."""
    kwargs = {"config": SimpleNamespace(workers=workers, reload=reload)}
    monkeypatch.setattr(multiprocessing.current_process(), "_kwargs", kwargs, raising=False)


@pytest.mark.parametrize("workers", [2, 8])
def test_several_workers(
    workers: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One of several workers exits with one line, and a status that ends uvicorn's supervisor."""
    be_one_of(workers, monkeypatch)
    with pytest.raises(SystemExit) as exit_:
        refuse_workers()
    assert exit_.value.code == 3
    assert capsys.readouterr().err == (
        f"handler: {workers} workers would work on {workers} calls at a time; "
        "start one: --workers 1, and no WEB_CONCURRENCY\n"
    )


def test_a_worker_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that is no one's worker goes on, and so does the one worker of `--reload`."""
    refuse_workers()
    be_one_of(1, monkeypatch)
    refuse_workers()
    be_one_of(2, monkeypatch, reload=True)
    refuse_workers()
    monkeypatch.delitem(sys.modules, "multiprocessing")
    refuse_workers()
