"""The settings and their bounds."""

import os
import re
import sys
from collections.abc import Mapping
from contextlib import suppress
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

DOTENV = Path(__file__).parent.parent / ".env"
"""The `.env` beside the README."""

_LABEL = re.compile(r"(?!-)[a-zA-Z0-9_-]{1,63}(?<!-)")


class InvalidSetting(Exception):
    """Raised when a setting cannot be used; names it, its value and what is allowed."""


def _host(value: str) -> str:
    """Return `value` if it can be a host's name or address; raises `ValueError`."""
    with suppress(ValueError):
        ip_address(value)
        return value
    labels = value.encode("idna").decode().removesuffix(".").split(".")
    if len(value) > 253 or not all(map(_LABEL.fullmatch, labels)):
        raise ValueError
    return value


class Settings(BaseModel):
    """What can be set, from the environment and `.env`; each description is what is allowed."""

    model_config = ConfigDict(frozen=True, alias_generator=str.upper, validate_by_name=True)

    hostname: Annotated[str, AfterValidator(_host)] = Field(
        default="localhost", description="a host name or IP address"
    )
    port: int = Field(default=8000, ge=0, le=65535, description="a whole number from 0 to 65535")
    work_seconds: float = Field(
        default=3.0, gt=0, allow_inf_nan=False, description="a finite number of seconds above 0"
    )
    max_waiting: int = Field(default=100, ge=0, description="a whole number, 0 or more")
    max_wait_seconds: float | None = Field(
        default=None, gt=0, allow_inf_nan=False, description="a finite number of seconds above 0"
    )
    trust_request_start: bool = Field(default=False, description="true or false")

    @classmethod
    def load(cls) -> Self:
        """Like `read`, but exits with status 2 and one line, as argparse does, if it raises."""
        try:
            return cls.read()
        except InvalidSetting as error:
            print(f"handler: {error}", file=sys.stderr)
            raise SystemExit(2) from None

    @classmethod
    def read(cls, environ: Mapping[str, str] = os.environ, dotenv: Path = DOTENV) -> Self:
        """Read the settings; the environment takes precedence over the file `dotenv`.

        `HOSTNAME` is read from the file alone, since shells and containers export it as the
        machine's own name. The file need not exist.
        Raises `InvalidSetting`.
        """
        given = _read(dotenv) | {name: environ[name] for name in environ if name != "HOSTNAME"}
        try:
            return cls.model_validate(given, by_name=False)
        except ValidationError as error:
            raise InvalidSetting("; ".join(map(_explain, error.errors()))) from None


def _explain(problem: ErrorDetails) -> str:
    [variable] = problem["loc"]
    allowed = Settings.model_fields[str(variable).lower()].description
    return f"{variable}={problem['input']!r}: must be {allowed}"


def _read(dotenv: Path) -> dict[str, str | None]:
    try:
        with dotenv.open(encoding="utf-8") as stream:
            # Imported only where there is a file to read: the Lambda function has none.
            from dotenv import dotenv_values

            return dict(dotenv_values(stream=stream))
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidSetting(f"{dotenv}: must be a readable UTF-8 file: {error}") from None
