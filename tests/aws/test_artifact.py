"""The artifact of `sam build`, alone and under AWS's own runtime emulator and runtime client."""

import struct
import subprocess
import sys
import time
from importlib.util import MAGIC_NUMBER
from typing import Any

import pytest

from tests.aws.artifact import ARTIFACT, PYTHON, VERSION, environment, needs_artifact
from tests.support.entry_points import response, rest_event
from tests.support.server import LIMIT, ROOT

pytestmark = needs_artifact

IMPORT_ALL = """
import importlib, importlib.metadata, sys
artifact = sys.argv[1]
sys.path.append(artifact)
distributions = list(importlib.metadata.distributions(path=[artifact]))
for distribution in distributions:
    files = {file.parts[0] for file in distribution.files if file.suffix == ".py"}
    for name in files - {"__pycache__"}:
        importlib.import_module(name.removesuffix(".py"))
import handler.main
print(*(f"{found.name}=={found.version}" for found in distributions))
"""


def test_what_is_pinned() -> None:
    """The artifact holds what is pinned and nothing else, and all of that can be imported."""
    imported = subprocess.run(
        [PYTHON, "-I", "-S", "-B", "-c", IMPORT_ALL, ARTIFACT],
        check=True,
        env={"AWS_LAMBDA_FUNCTION_NAME": "function"},
        stdout=subprocess.PIPE,
        text=True,
    ).stdout.split()
    pinned = (ROOT / "handler/requirements.txt").read_text().split()
    assert sorted(map(normalized, imported)) == sorted(pinned)


def normalized(distribution: str) -> str:
    return distribution.lower().replace("_", "-")


def test_up_to_date() -> None:
    """The artifact was built from the present code; if this fails, run `sam build` again."""
    for source in (ROOT / "handler").glob("*.py"):
        assert (ARTIFACT / "handler" / source.name).read_text() == source.read_text()


def test_compiled_ahead() -> None:
    """Each source file has its bytecode beside it, which is used without checking the source."""
    sources = list(ARTIFACT.rglob("*.py"))
    assert len(sources) > 100
    for source in sources:
        bytecode = (
            source.parent / "__pycache__" / f"{source.stem}.cpython-{VERSION.replace('.', '')}.pyc"
        )
        unchecked_hash = struct.pack("<I", 0b01)
        assert bytecode.read_bytes()[4:8] == unchecked_hash, source
    if f"{sys.version_info.major}.{sys.version_info.minor}" == VERSION:
        assert bytecode.read_bytes()[:4] == MAGIC_NUMBER


@pytest.mark.parametrize("event", [{}, {"resource": "/test"}, {"headers": None, "version": "2.0"}])
def test_a_bad_event(event: dict[str, Any]) -> None:
    """An event of unknown kind is an error of that event alone: the next gets its response."""
    with environment(work_seconds=0.001) as invoke:
        assert "errorType" in invoke(event).json()
        assert response(invoke(rest_event({})).json()).status_code == 200


def test_hundreds_of_invocations() -> None:
    """One environment serves hundreds of requests in a row, after a failure."""
    with environment(0.001, "faulty_handler.handler") as invoke:
        failed = response(invoke(rest_event({"X-Fault": "fail"})).json())
        assert failed.status_code == 500
        assert failed.json() == {"detail": "Internal Server Error"}

        first = time.time() - 250
        for number in range(200):  # arrivals are a second apart: none is held to an exact step
            result = invoke(rest_event({"X-Request-Start": f"t={first + number}"})).json()
            assert 250 - number < response(result).json()["elapsed"] < 300


def test_after_a_timeout() -> None:
    """After Lambda has ended a request that takes too long, the next ones are served."""
    with environment(0.001, "faulty_handler.handler", timeout=2) as invoke:
        assert invoke(rest_event({"X-Fault": "hang"})).text == "Task timed out after 2.00 seconds"
        timed_out = time.monotonic()
        # The emulator is restarting, and on a busy machine that may time out, too.
        while '"statusCode": 200' not in invoke(rest_event({})).text:
            assert time.monotonic() < timed_out + LIMIT


def test_without_the_right_python() -> None:
    """On a machine without the function's Python, the build fails and names the container build."""
    build = subprocess.run(
        ["make", "--file", "handler/Makefile", "build-Function", "PYTHON=python0.0"],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    assert build.returncode != 0
    assert "python0.0 is not on the PATH" in build.stderr
    assert "sam build --use-container" in build.stderr
