"""Settings models that refuse in one clear line."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

from loadwise.errors import ConfigurationError

Fraction = Annotated[float, Field(ge=0.0, le=1.0, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]


def describe(error: ValidationError) -> str:
    """One line per problem: field, what is allowed, the value that was given (never a secret's)."""
    return "; ".join(_line(problem) for problem in error.errors(include_url=False))


def _line(problem: ErrorDetails) -> str:
    where = ".".join(str(part) for part in problem["loc"])
    said = problem.get("ctx", {}).get("error")
    if said is not None:
        # Raised by a validator of ours: its message says all, and begins with its field where it has one.
        own = getattr(said, "field", None)
        glue = "." if own and str(said).startswith(own) else ": "
        return f"{where}{glue}{said}" if where else str(said)
    if problem["type"] == "extra_forbidden":
        return f"{where}: there is no such setting"
    given = problem.get("input")
    secret = any(word in where for word in ("key", "secret", "sha256"))
    shown = "" if secret or isinstance(given, dict | list) else f", not {given!r:.80}"
    return f"{where or 'settings'}: {problem['msg']}{shown}"


def first_field(error: ValidationError) -> str | None:
    """The dotted name of the first field that is wrong, None when it is the whole."""
    problem = error.errors(include_url=False)[0]
    own = getattr(problem.get("ctx", {}).get("error"), "field", None)
    return ".".join(str(part) for part in (*problem["loc"], *([own] if own else []))) or None


class Checked(BaseModel):
    """A frozen settings model whose errors are `ConfigurationError`s, which are `ValueError`s."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise ConfigurationError(describe(error), field=first_field(error)) from None
