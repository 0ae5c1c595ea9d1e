"""One HTTP/1.1 connection to an upstream, and the answer that it carries.

llhttp (`httptools`) parses, strictly. Everything that goes wrong on the wire is an `OSError`.
"""

from __future__ import annotations

import asyncio
from typing import Final, Protocol, cast

import httptools

# Of an answer's line and headers, and of its trailers.
HEAD_LIMIT_BYTES: Final = 256 * 1024
# Of a body that nobody has taken yet: beyond it the server has to wait.
BUFFER_BYTES: Final = 256 * 1024


class Keeper(Protocol):
    """Who keeps connections between requests."""

    def opened(self, connection: Connection) -> None:
        """A connection exists."""
        ...

    def keep(self, connection: Connection) -> None:
        """A connection is free for the next request."""
        ...

    def lost(self, connection: Connection) -> None:
        """A connection is closed."""
        ...


class BrokenAnswerError(ConnectionError):
    """What came was no HTTP, or ended early."""


class Response:
    """An answer whose head is there; its body is taken piece by piece."""

    __slots__ = ("_connection", "_error", "_pieces", "_size", "_waiter", "ended", "headers", "status")

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._pieces: list[bytes] = []
        self._size = 0
        self._waiter: asyncio.Future[None] | None = None
        self._error: OSError | None = None
        # 0 until the head is there.
        self.status = 0
        # Lower-case names.
        self.headers: list[tuple[str, str]] = []
        # The body is whole, perhaps not taken yet.
        self.ended = False

    def header(self, name: str) -> str:
        """The first header of that lower-case name; empty where there is none."""
        return next((value for key, value in self.headers if key == name), "")

    @property
    def waits(self) -> bool:
        """Whether `piece` would have to wait."""
        return not self._pieces and not self.ended

    async def piece(self, until_s: float | None = None) -> bytes:
        """The part of the body that came since the last call; empty at the end.

        Raises `OSError`: `TimeoutError` where nothing came until then, by the loop's clock.
        """
        while self.waits:
            await self._news(until_s)
        data = self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)
        self._pieces, self._size = [], 0
        if not self.ended:
            self._connection.go_on()
        return data

    async def head(self, until_s: float | None = None) -> None:
        """Waits for the head, at most until then; raises `OSError`."""
        while not self.status:
            await self._news(until_s)

    def close(self) -> None:
        """Gives the connection up, unless it was kept already because the answer is whole."""
        if not self.ended:
            self._connection.abort()

    async def _news(self, until_s: float | None) -> None:
        if self._error is not None:
            raise self._error
        loop = asyncio.get_running_loop()
        self._waiter = waiter = loop.create_future()
        # A timer alone is a third of what `asyncio.timeout` costs, which every wait would pay for.
        timer = None if until_s is None else loop.call_at(until_s, _late, waiter)
        try:
            await waiter
        finally:
            self._waiter = None
            if timer is not None:
                timer.cancel()

    # --- what the connection tells it ---

    def began(self, status: int, headers: list[tuple[str, str]]) -> None:
        """The head is there."""
        self.status, self.headers = status, headers
        self._wake()

    def add(self, data: bytes) -> bool:
        """A part of the body came; False when enough lies here for now."""
        self._pieces.append(data)
        self._size += len(data)
        self._wake()
        return self._size < BUFFER_BYTES

    def end(self, error: OSError | None = None) -> None:
        """The body is whole, or it broke off."""
        if error is None:
            self.ended = True
        else:
            self._error = error
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class Connection(asyncio.Protocol):
    """One connection and the answer that it carries, if any."""

    def __init__(self, keeper: Keeper) -> None:
        self._keeper = keeper
        self._parser = httptools.HttpResponseParser(self)
        self._response: Response | None = None
        self._headers: list[tuple[str, str]] = []
        # What came since the last part of a body.
        self._bare_bytes = 0
        self._paused = False
        self.transport: asyncio.Transport
        # Whether any byte of the present answer came.
        self.heard = False
        self.idle_since_s = 0.0

    async def ask(self, data: bytes, until_s: float | None = None) -> Response:
        """The answer to a request once its head is there; without one the connection is given up."""
        self._response = response = Response(self)
        self._bare_bytes, self.heard = 0, False
        self.transport.write(data)
        try:
            await response.head(until_s)
        except BaseException:
            self.abort()
            raise
        return response

    def abort(self) -> None:
        """The connection is closed at once."""
        self.transport.abort()

    def go_on(self) -> None:
        """The server may send more."""
        if self._paused:
            self._paused = False
            self.transport.resume_reading()

    # --- what asyncio tells it ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The connection is open."""
        self.transport = cast(asyncio.Transport, transport)
        self._keeper.opened(self)

    def data_received(self, data: bytes) -> None:
        """Bytes came."""
        self.heard = True
        self._bare_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._broken(f"what came is no answer: {error}")
            return
        if self._response is not None and self._bare_bytes > HEAD_LIMIT_BYTES:
            self._broken("its headers have no end")

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is closed; an answer that is not whole broke off, unless the closing is its end."""
        self._keeper.lost(self)
        response, self._response = self._response, None
        if response is None:
            return
        if exc is None and response.status and _until_closed(response):
            response.end()
        else:
            response.end(BrokenAnswerError(str(exc) if exc else "the server closed the connection"))

    def _broken(self, reason: str) -> None:
        response, self._response = self._response, None
        if response is not None:
            response.end(BrokenAnswerError(reason))
        self.abort()

    # --- what the parser tells it ---

    def on_message_begin(self) -> None:
        """The first byte of an answer came."""
        self._headers = []
        if self._response is None:
            # Bytes that nobody asked for: what would come next could be anyone's answer.
            self.abort()

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header came, or a trailer, which nobody reads."""
        if self._response is not None and not self._response.status:
            self._headers.append((name.decode("latin-1").lower(), value.decode("latin-1")))

    def on_headers_complete(self) -> None:
        """The head is whole."""
        status = self._parser.get_status_code()
        # 1xx announces an answer and is none (RFC 9110, section 15.2).
        if self._response is not None and status >= 200:
            self._response.began(status, self._headers)

    def on_body(self, data: bytes) -> None:
        """A part of the body came."""
        self._bare_bytes = 0
        response = self._response
        if response is not None and not response.add(data) and not self._paused:
            self._paused = True
            self.transport.pause_reading()

    def on_message_complete(self) -> None:
        """The answer is whole; the connection is free where both sides want that."""
        response = self._response
        if response is None or not response.status:
            return
        self._response = None
        self.go_on()
        if self._parser.should_keep_alive():
            self._keeper.keep(self)
        else:
            self.abort()
        response.end()


def _late(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_exception(TimeoutError("nothing came in time"))


def _until_closed(response: Response) -> bool:
    """Whether its body ends with the connection, having no length of its own."""
    return (
        not response.header("content-length")
        and "chunked" not in response.header("transfer-encoding").lower()
    )
