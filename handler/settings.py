"""The five settings and their bounds."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

DOTENV = Path(__file__).parent.parent / ".env"
"""The `.env` beside the README."""


class InvalidSetting(Exception):
    """Raised when a setting cannot be used; names it, its value and what is allowed."""


class Settings(BaseModel):
    """What can be set, from the environment and `.env`; each description is what is allowed."""

    model_config = ConfigDict(frozen=True, alias_generator=str.upper, validate_by_name=True)

    hostname: str = Field(
        default="localhost", min_length=1, description="a host name or IP address"
    )
    port: int = Field(default=8000, ge=0, le=65535, description="a whole number from 0 to 65535")
    work_seconds: float = Field(
        default=3.0, gt=0, allow_inf_nan=False, description="a finite number of seconds above 0"
    )
    max_waiting: int = Field(default=100, ge=0, description="a whole number, 0 or more")
    trust_request_start: bool = Field(default=False, description="true or false")

    @classmethod
    def load(cls, environ: Mapping[str, str] = os.environ, dotenv: Path = DOTENV) -> Self:
        """Read the settings: the environment goes before the file `dotenv`, which need not exist.

        `HOSTNAME` is read from the file alone, since shells and containers export it as the
        machine's own name.
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
    if not dotenv.is_file():
        return {}
    # Imported only where there is a file to read: the Lambda function has none.
    from dotenv import dotenv_values

    try:
        return dict(dotenv_values(dotenv))
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidSetting(f"{dotenv}: must be a readable UTF-8 file: {error}") from None
