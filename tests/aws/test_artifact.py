"""What `sam build` made, alone and under AWS's own runtime emulator and runtime client."""

import json
import os
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import MAGIC_NUMBER
from typing import Any

import httpx
import pytest

from tests.support.assertions import assert_staircase
from tests.support.entry_points import http_api_event, request_start, rest_event
from tests.support.server import LIMIT, ROOT, free_port

ARTIFACT = ROOT / ".aws-sam/build/Function"
VERSION = (ROOT / ".python-version").read_text().strip()
SAM = ROOT / ".sam"
PYTHON = SAM / f"bin/python{VERSION}"
EMULATOR = SAM / f"lib/python{VERSION}/site-packages/samcli/local/rapid/aws-lambda-rie-x86_64"
SET_UP = (
    f"python{VERSION} -m venv .sam && .sam/bin/pip install -r tests/requirements-sam.txt"
    " && PATH=$PWD/.sam/bin:$PATH sam build"
)
WORK_SECONDS = 0.1

pytestmark = pytest.mark.skipif(
    "REQUIRE_ARTIFACT" not in os.environ and not (ARTIFACT.exists() and PYTHON.exists()),
    reason=f"needs the built artifact and AWS's runtime emulator: {SET_UP}",
)

Invoke = Callable[[dict[str, Any]], httpx.Response]


@contextmanager
def environment(
    handler: str = "handler.main.handler", work_seconds: float = WORK_SECONDS
) -> Iterator[Invoke]:
    """Start an execution environment of the artifact, and yield a function that invokes it."""
    address = f"127.0.0.1:{free_port()}"
    process = subprocess.Popen(
        [
            *(EMULATOR, "--runtime-interface-emulator-address", address),
            *("--runtime-api-address", f"127.0.0.1:{free_port()}"),
            *(PYTHON, "-m", "awslambdaric", handler),
        ],
        cwd=ARTIFACT,
        env={
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(ROOT / "tests/aws"),
            "PYTHONDONTWRITEBYTECODE": "1",
            "AWS_LAMBDA_FUNCTION_TIMEOUT": "2",
            "WORK_SECONDS": str(work_seconds),
            "TRUST_REQUEST_START": "true",
        },
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    patient = httpx.HTTPTransport(retries=6)
    try:
        with httpx.Client(transport=patient, base_url=f"http://{address}", timeout=LIMIT) as client:
            yield lambda event: client.post(
                "/2015-03-31/functions/function/invocations", json=event
            )
    finally:
        process.terminate()
        process.wait(LIMIT)


@pytest.fixture(scope="module")
def invoke() -> Iterator[Invoke]:
    with environment() as invoke:
        yield invoke


def elapsed(result: httpx.Response) -> float:
    assert result.json()["statusCode"] == 200
    seconds: float = json.loads(result.json()["body"])["elapsed"]
    return seconds


LIST_IMPORTED = """
import sys
from pathlib import Path
artifact = Path(sys.argv[1])
sys.path.append(str(artifact))
import handler.main
files = [Path(getattr(module, "__file__", None) or "") for module in sys.modules.values()]
print(*{file.relative_to(artifact).parts[0] for file in files if file.is_relative_to(artifact)})
"""


def test_only_what_the_function_imports() -> None:
    """The artifact holds the handler and what it imports, and starts without anything else."""
    imported = subprocess.run(
        [PYTHON, "-I", "-S", "-B", "-c", LIST_IMPORTED, ARTIFACT],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    ).stdout.split()
    present = {path.name for path in ARTIFACT.iterdir() if path.suffix != ".dist-info"}
    assert present - {"__pycache__"} == set(imported)


def test_up_to_date() -> None:
    """The artifact was built from the code as it is: otherwise, `sam build` again."""
    for source in (ROOT / "handler").glob("*.py"):
        assert (ARTIFACT / "handler" / source.name).read_text() == source.read_text()


def test_compiled_ahead() -> None:
    """Each source has its bytecode beside it, which is used without a look at the source."""
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


@pytest.mark.parametrize("event", [rest_event, http_api_event])
def test_events(invoke: Invoke, event: Callable[[dict[str, str]], dict[str, Any]]) -> None:
    """The events of a REST API and of an HTTP API are answered alike, in JSON and not base64."""
    answer = invoke(event({}))
    assert WORK_SECONDS <= elapsed(answer) < WORK_SECONDS + 1
    result = answer.json()
    assert result["isBase64Encoded"] is False
    headers = result["headers"] | {
        name: values[0] for name, values in result.get("multiValueHeaders", {}).items()
    }
    assert headers["content-type"] == "application/json"
    assert headers["server-timing"].startswith("queue;dur=")


def test_a_burst(invoke: Invoke) -> None:
    """A burst, stamped at once and invoked one after another, keeps the exact step."""
    events = [rest_event(request_start()) for _ in range(8)]
    answers = [httpx.Response(200, json={"elapsed": elapsed(invoke(event))}) for event in events]
    assert_staircase(answers, WORK_SECONDS)


@pytest.mark.parametrize("event", [{}, {"resource": "/test"}, {"headers": None, "version": "2.0"}])
def test_a_bad_event(invoke: Invoke, event: dict[str, Any]) -> None:
    """An event of no kind that is known is an error of its own, and the next is answered."""
    assert "errorType" in invoke(event).json()
    elapsed(invoke(rest_event({})))


def test_hundreds_of_invocations() -> None:
    """One environment answers hundreds in a row, and goes on after one failed and one timed out."""
    with environment("faulty_handler.handler", work_seconds=0.001) as invoke:
        failed = invoke(rest_event({"X-Fault": "fail"})).json()
        assert failed["statusCode"] == 500
        assert json.loads(failed["body"]) == {"detail": "Internal Server Error"}
        elapsed(invoke(rest_event({})))

        timed_out = invoke(rest_event({"X-Fault": "hang"}))
        assert timed_out.text == "Task timed out after 2.00 seconds"

        first = time.time() - 290
        for number in range(200):  # arrivals a second apart: none is held to another's step
            assert elapsed(invoke(rest_event({"X-Request-Start": f"t={first + number}"}))) < 300


def test_without_the_right_python() -> None:
    """A machine without the function's Python is told of the build in a container."""
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
