"""One base error; every message says what was asked, what is allowed and what to do next."""

from __future__ import annotations


class LoadwiseError(Exception):
    """Base of every error that loadwise raises on purpose."""


class ConfigurationError(LoadwiseError, ValueError):
    """A setting is wrong: the message names the field, its value and the range allowed."""

    def __init__(self, message: str, *, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field


class CapacityError(LoadwiseError, ValueError):
    """Something is full: the message names the limit and how to raise it."""


class ConflictError(LoadwiseError):
    """Somebody else made a change meanwhile: the message says who, when, and what is in force now."""


class UnknownNameError(LoadwiseError, KeyError):
    """A model, member, version or build was named that does not exist."""

    def __str__(self) -> str:
        # KeyError would show its message in quotes, as if it were a key.
        return str(self.args[0]) if self.args else ""


class MissingExtraError(LoadwiseError, ImportError):
    """An optional part is not installed: the message names the extra that brings it."""


class EngineError(LoadwiseError):
    """An engine could not be started, reached or understood."""


class BuildError(LoadwiseError):
    """A build could not be made, verified or kept; `remedy` says what to do about it."""

    def __init__(self, message: str, *, remedy: str = "") -> None:
        super().__init__(message)
        self.remedy = remedy


class BuildDeclinedError(BuildError):
    """A model that cannot be built as it is, for a reason that trying again will not change.

    `graph_break` names the place in the model's code where its graph broke, if that is the reason.
    """

    def __init__(self, message: str, *, remedy: str = "", graph_break: str = "") -> None:
        super().__init__(message, remedy=remedy)
        self.graph_break = graph_break


class RequestError(LoadwiseError):
    """A request that gets an error answer in OpenAI's shape.

    `status` is the HTTP status (400..599); `kind`, `param` and `code` become the fields `type`,
    `param` and `code` of the error body; `retry_after_s` becomes the `retry-after` header.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        kind: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind
        self.param = param
        self.code = code
        self.retry_after_s = retry_after_s

    def body(self) -> dict[str, dict[str, str | None]]:
        """The error in OpenAI's shape; all four keys are always there."""
        return {"error": {"message": str(self), "type": self.kind, "param": self.param, "code": self.code}}
