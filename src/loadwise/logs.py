"""The one logger factory: structured events over the standard library's logging, silent until configured.

A library must not write where nobody asked it to: records go to the logger `loadwise` and what the
application attached to it or to the root. Every record of a request carries the request's id.
"""

from __future__ import annotations

import logging
from contextvars import ContextVar
from typing import Any, Final

import structlog
from structlog.typing import EventDict, WrappedLogger

from loadwise.errors import EngineError

ROOT: Final = "loadwise"
# Attribute of a record that holds its fields, for formatters that write them apart.
FIELDS: Final = "loadwise_fields"
# In the task that serves a request: its id.
REQUEST_ID: ContextVar[str | None] = ContextVar("loadwise_request_id", default=None)
_KEYWORDS: Final = ("exc_info", "stack_info", "stacklevel")

# Without a handler of the application's, the standard library would write warnings to standard error.
logging.getLogger(ROOT).addHandler(logging.NullHandler())


def get_logger(name: str) -> Any:
    """A logger with methods `debug` to `exception(event, **fields)`, over `logging.getLogger(name)`."""
    return structlog.wrap_logger(
        logging.getLogger(name),
        processors=[structlog.stdlib.filter_by_level, _with_request_id, _record],
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )


def said_by(error: BaseException) -> str:
    """An error's type, with its text only where that cannot repeat what a client sent."""
    name = type(error).__name__
    return f"{name}: {error}" if isinstance(error, EngineError | OSError) else name


def _with_request_id(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    request_id = REQUEST_ID.get()
    if request_id is not None:
        event.setdefault("request_id", request_id)
    return event


def _record(_: WrappedLogger, __: str, event: EventDict) -> Any:
    """Arguments of the standard library's logging call: a text for people, and the fields beside it."""
    event.pop("positional_args", None)
    text = str(event.pop("event"))
    keywords = {name: event.pop(name) for name in _KEYWORDS if event.get(name)}
    shown = "".join(f" {name}={value!r}" for name, value in event.items())
    fields = {"event": text, **event}
    return ("%s", text + shown), {**keywords, "extra": {FIELDS: fields}}
