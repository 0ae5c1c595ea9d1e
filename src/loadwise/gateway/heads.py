"""HTTP/1.1 whose request heads are bounded in size and in time; the parser itself would take any and wait."""

from __future__ import annotations

import asyncio

import msgspec
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from loadwise.errors import RequestError
from loadwise.gateway.together import Together

# Of a request's line and headers while they are incomplete. The read in which they begin counts whole
# (at most 256 KiB, perhaps with another request's body), so half of this is free for them in any case.
HEAD_LIMIT_BYTES = 512 * 1024
# From a request's first byte to the end of its headers; also how long a new connection may be silent, and how
# long the rest of a body may come after its answer.
HEAD_S = 20.0


def _answer(status: bytes, error: RequestError) -> bytes:
    body = msgspec.json.encode(error.body())
    return (
        b"HTTP/1.1 %b\r\ncontent-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n%b"
        % (status, len(body), body)
    )


_TOO_LARGE = _answer(
    b"431 Request Header Fields Too Large",
    RequestError(
        f"The request's line and headers are larger than {HEAD_LIMIT_BYTES} bytes.", code="headers_too_large"
    ),
)
_INVALID = _answer(b"400 Bad Request", RequestError("The request is no valid HTTP/1.1.", code="invalid_http"))
_TOO_SLOW = _answer(
    b"408 Request Timeout",
    RequestError(
        f"The request's line and headers were not complete after {HEAD_S:g} s.", code="headers_timeout"
    ),
)


class BoundedHeads(HttpToolsProtocol):
    """One connection; a head that grows too large gets a 431, one that takes too long a 408."""

    # Bytes that came while a request's head was incomplete; None between head and next request.
    _head: int | None = None
    # Only incomplete heads and new connections have one: a head that comes whole costs no timer.
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client connected."""
        super().connection_made(Together(transport, self.loop))  # type: ignore[arg-type]
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is closed."""
        self._stop_waiting()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Bytes came; an incomplete head is counted and timed."""
        super().data_received(data)
        if self._head is None or self.transport.is_closing():
            return
        self._head += len(data)
        if self._head > HEAD_LIMIT_BYTES:
            self._refuse(_TOO_LARGE)
        elif self._timer is None:
            self._wait()

    def on_message_begin(self) -> None:
        """The first byte of a request came."""
        self._head = 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """A request's head is whole."""
        self._head = None
        self._stop_waiting()
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """A request's body is whole."""
        self._stop_waiting()
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """An answer is sent; the rest of a body that nobody reads may come for as long as a head."""
        super().on_response_complete()
        if self.cycle.response_complete and self.cycle.more_body and not self.transport.is_closing():
            self._wait()

    def send_400_response(self, msg: str) -> None:
        """What came is no HTTP: said in OpenAI's shape."""
        self._refuse(_INVALID)

    def _wait(self) -> None:
        self._timer = self.loop.call_later(HEAD_S, self._too_slow)

    def _stop_waiting(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _too_slow(self) -> None:
        if self.cycle is not None and not self.cycle.response_complete:
            # The answer to the request before this one is still on its way.
            self._wait()
        elif self._head is None:
            # Nothing was asked: there is nothing to answer.
            self.transport.close()
        else:
            self._refuse(_TOO_SLOW)

    def _refuse(self, answer: bytes) -> None:
        self._stop_waiting()
        if self._free():
            self.transport.write(answer)
        self.transport.close()

    def _free(self) -> bool:
        """Whether what is written now answers what came last, and is no part of the answer before it."""
        cycle = self.cycle
        if cycle is None or cycle.response_complete:
            return True
        return cycle.more_body and not cycle.response_started and not self.pipeline
