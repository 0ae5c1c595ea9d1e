"""Settings models that refuse in one clear line."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from loadwise.errors import ConfigurationError

Fraction = Annotated[float, Field(ge=0.0, le=1.0, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]


def describe(error: ValidationError) -> str:
    """One line per problem: field, what is allowed, the value that was given (never a secret's)."""
    lines = []
    for problem in error.errors(include_url=False):
        where = ".".join(str(part) for part in problem["loc"]) or "settings"
        given = problem.get("input")
        secret = any(word in where for word in ("key", "secret", "sha256"))
        shown = "" if secret or isinstance(given, dict | list) else f", not {given!r:.80}"
        lines.append(f"{where}: {problem['msg']}{shown}")
    return "; ".join(lines)


def first_field(error: ValidationError) -> str | None:
    """The dotted name of the first field that is wrong, None when it is the whole."""
    location = error.errors(include_url=False)[0]["loc"]
    return ".".join(str(part) for part in location) or None


class Checked(BaseModel):
    """A frozen settings model whose errors are `ConfigurationError`s, which are `ValueError`s."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise ConfigurationError(describe(error), field=first_field(error)) from None
