"""The end of the process."""

import sys

import pytest

from handler.server.exit import is_command_line


@pytest.mark.parametrize(
    ("command", "is_ours"),
    [
        ("/venv/bin/uvicorn", True),
        (r"uvicorn", True),
        ("/venv/lib/site-packages/uvicorn/__main__.py", True),
        ("/src/handler/__main__.py", True),
        ("/venv/bin/pytest", False),
        ("/venv/lib/site-packages/pytest/__main__.py", False),
        ("/venv/bin/gunicorn", False),
        ("/src/serve.py", False),
        ("-c", False),
        ("", False),
    ],
)
def test_is_command_line(command: str, is_ours: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """uvicorn's command line and `python -m handler` are ended, no program that embeds them."""
    monkeypatch.setattr(sys, "argv", [command])
    assert is_command_line() == is_ours
