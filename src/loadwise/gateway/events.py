"""Server-sent events that the gateway itself writes."""

from __future__ import annotations

import msgspec

from loadwise.errors import RequestError

DONE = b"data: [DONE]\n\n"


def broken_stream(error: Exception, last: bytes) -> bytes:
    """An error event and `[DONE]`; an event that was cut off in `last` is closed before."""
    said = (
        error
        if isinstance(error, RequestError)
        else RequestError(
            "The engine failed while it was answering; what was sent so far is incomplete.",
            status=502,
            kind="server_error",
            code="engine_failed",
        )
    )
    gap = b"" if not last or last.endswith((b"\n\n", b"\r\n\r\n")) else b"\n\n"
    return b"".join((gap, b"data: ", msgspec.json.encode(said.body()), b"\n\n", DONE))
