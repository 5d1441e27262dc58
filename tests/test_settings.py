"""The settings and their bounds."""

import logging
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from handler.settings import InvalidSetting, Settings

NOWHERE = Path("/nonexistent/.env")
SAMPLE = Path(__file__).parent.parent / ".env.sample"


def load(**environ: str) -> Settings:
    return Settings.read(environ, NOWHERE)


def test_defaults() -> None:
    """With nothing set, the settings are the defaults."""
    assert load().model_dump() == {
        "hostname": "localhost",
        "port": 8000,
        "work_seconds": 3.0,
        "max_waiting": 100,
        "max_wait_seconds": None,
        "trust_request_start": False,
    }


def test_sample() -> None:
    """The sample lists every setting, each with its default."""
    assert Settings.read({}, SAMPLE) == load()
    lines = [line.removeprefix("# ") for line in SAMPLE.read_text().splitlines()]
    variables = [line.partition("=")[0] for line in lines if "=" in line]
    assert variables == [name.upper() for name in Settings.model_fields]


def test_environment() -> None:
    """Environment variables are read, except HOSTNAME, which is the machine's name there."""
    settings = load(
        HOSTNAME="box",
        PORT="0",
        WORK_SECONDS="0.5",
        MAX_WAITING="0",
        MAX_WAIT_SECONDS="60",
        TRUST_REQUEST_START="true",
    )
    assert settings == Settings(
        port=0, work_seconds=0.5, max_waiting=0, max_wait_seconds=60, trust_request_start=True
    )


def test_dotenv(tmp_path: Path) -> None:
    """A `.env` is read, including HOSTNAME; the environment takes precedence over it."""
    dotenv = tmp_path / ".env"
    dotenv.write_text("HOSTNAME=0.0.0.0\nPORT=9000\nWORK_SECONDS=1\nOTHER=ignored\n")
    settings = Settings.read({"HOSTNAME": "box", "PORT": "9001"}, dotenv)
    assert settings == Settings(hostname="0.0.0.0", port=9001, work_seconds=1)


@pytest.mark.parametrize(
    ("variable", "values", "allowed"),
    [
        ("PORT", ["-1", "65536", "80.5", "http", "", "nan"], "a whole number from 0 to 65535"),
        (
            "WORK_SECONDS",
            ["0", "-0.0", "-1", "nan", "inf", "-inf", "1e999", "three", "3s", "3,0", ""],
            "a finite number of seconds above 0",
        ),
        ("MAX_WAITING", ["-1", "1.5", "inf", "nan", "many", ""], "a whole number, 0 or more"),
        (
            "MAX_WAIT_SECONDS",
            ["0", "-1", "nan", "inf", "long", ""],
            "a finite number of seconds above 0",
        ),
        ("TRUST_REQUEST_START", ["2", "perhaps", ""], "true or false"),
    ],
)
def test_invalid(variable: str, values: list[str], allowed: str) -> None:
    """A bad value is rejected in one line, with the variable, the value and what is allowed."""
    for value in values:
        with pytest.raises(InvalidSetting) as error:
            load(**{variable: value})
        assert str(error.value) == f"{variable}={value!r}: must be {allowed}"


@pytest.mark.parametrize(
    "name",
    ["", "a..b", ".", "a b", "-a", "a-.b", "x" * 64, "x." * 127 + "x", "[::1]", "a/b", "a:1"],
)
def test_invalid_hostname(name: str, tmp_path: Path) -> None:
    """A HOSTNAME in `.env` that cannot be a host's name is rejected in one line."""
    dotenv = tmp_path / ".env"
    dotenv.write_text(f"HOSTNAME='{name}'\n")
    with pytest.raises(InvalidSetting) as error:
        Settings.read({}, dotenv)
    assert str(error.value) == f"HOSTNAME={name!r}: must be a host name or IP address"


@pytest.mark.parametrize(
    "name", ["0.0.0.0", "::1", "fe80::1%eth0", "a-b.example.", "bücher", "a_b"]
)
def test_hostname(name: str, tmp_path: Path) -> None:
    """Host names, IPv4 and IPv6 addresses are accepted unchanged."""
    dotenv = tmp_path / ".env"
    dotenv.write_text(f"HOSTNAME={name}\n", encoding="utf-8")
    assert Settings.read({}, dotenv).hostname == name


def test_dotenv_that_is_a_pipe(tmp_path: Path) -> None:
    """A `.env` that is a named pipe, as a password manager makes, is read."""
    dotenv = tmp_path / ".env"
    os.mkfifo(dotenv)
    with ThreadPoolExecutor() as writer:
        writer.submit(dotenv.write_text, "PORT=9000\n")
        assert Settings.read({}, dotenv).port == 9000


def test_dotenv_that_is_a_folder(tmp_path: Path) -> None:
    """A `.env` that is a folder is rejected."""
    with pytest.raises(InvalidSetting, match=r"must be a readable UTF-8 file: .*Is a directory"):
        Settings.read({}, tmp_path)


def test_several_invalid() -> None:
    """All bad values are named together, in one line."""
    with pytest.raises(InvalidSetting) as error:
        load(PORT="x", WORK_SECONDS="y")
    assert str(error.value) == (
        "PORT='x': must be a whole number from 0 to 65535; "
        "WORK_SECONDS='y': must be a finite number of seconds above 0"
    )


def test_dotenv_without_a_value(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A name without a value in `.env` is rejected, and a malformed line is warned of."""
    dotenv = tmp_path / ".env"
    dotenv.write_text("PORT\n")
    with pytest.raises(InvalidSetting, match="PORT=None: must be a whole number"):
        Settings.read({}, dotenv)
    dotenv.write_text("PORT: 9000\n")
    with caplog.at_level(logging.WARNING):
        assert Settings.read({}, dotenv) == load()
    assert "could not parse statement starting at line 1" in caplog.text


def test_dotenv_that_is_not_text(tmp_path: Path) -> None:
    """A `.env` that is not UTF-8 text is rejected, with its name."""
    dotenv = tmp_path / ".env"
    dotenv.write_bytes(b"PORT=\xff\n")
    with pytest.raises(InvalidSetting, match=r"\.env: must be a readable UTF-8 file: .*0xff"):
        Settings.read({}, dotenv)
