"""The artifact of `sam build`, under AWS's own runtime emulator and runtime client."""

import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest

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
needs_artifact = pytest.mark.skipif(
    "REQUIRE_ARTIFACT" not in os.environ and not (ARTIFACT.exists() and PYTHON.exists()),
    reason=f"needs the built artifact and AWS's runtime emulator: {SET_UP}",
)

Invoke = Callable[[dict[str, Any]], httpx.Response]


@contextmanager
def environment(
    work_seconds: float, handler: str = "handler.main.handler", timeout: float = LIMIT
) -> Iterator[Invoke]:
    """Start an execution environment of the artifact, and yield a function that invokes it.

    An invocation that takes `timeout` seconds is ended, a cold start included.
    """
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
            "AWS_LAMBDA_FUNCTION_TIMEOUT": f"{timeout:g}",
            "WORK_SECONDS": str(work_seconds),
            "TRUST_REQUEST_START": "true",
        },
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    patient = httpx.HTTPTransport(retries=6)
    try:
        with httpx.Client(
            transport=patient, base_url=f"http://{address}", timeout=2 * LIMIT
        ) as client:
            yield lambda event: client.post(
                "/2015-03-31/functions/function/invocations", json=event
            )
    finally:
        process.terminate()
        process.wait(LIMIT)
