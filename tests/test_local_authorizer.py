"""The authorizer of the local entry point."""

import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from handler import local_authorizer
from handler.arrival import arrival

LIST_IMPORTED = """
import sys
before = {*sys.modules}
import local_authorizer
print({*sys.modules} - before)
"""


def test_a_request() -> None:
    """Every request is allowed, and gets a timestamp of arrival that the app can read."""
    before = time.monotonic()
    response = local_authorizer.handler({}, None)
    assert response["isAuthorized"] is True
    context = response["context"]
    assert isinstance(context, dict)
    assert arrival(context["requestStart"]) == pytest.approx(before, abs=1)
    assert arrival(context["requestStart"], wall=lambda: time.time() + 9) < before - 8


def test_imports(tmp_path: Path) -> None:
    """It runs on its own, and imports nothing but `time`."""
    shutil.copy(local_authorizer.__file__, tmp_path)
    command = [sys.executable, "-S", "-c", LIST_IMPORTED]
    imported = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True)
    assert imported.stdout == "{'local_authorizer'}\n"
