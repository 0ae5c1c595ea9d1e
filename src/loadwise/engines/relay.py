"""A stream on its way from an upstream to a client: same bytes, read on the side, never silently cut."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Final

from loadwise.decision.facts import Endpoint
from loadwise.engines.dialects import Reader, reader_of
from loadwise.engines.events import Splitter
from loadwise.engines.http_connection import Response
from loadwise.errors import EngineError, RequestError
from loadwise.ports import Clock, Progress

# What no event without usage of its own holds.
_USAGE: Final = b'"usage"'


class UpstreamStream:
    """Chunks of a streamed answer; closing it closes the upstream's connection.

    With `hide_usage`, the usage chunk that we asked for (and the client did not) is left out. Events are
    read once their bytes went on: `progress` tells of all that came before the chunk asked for last.
    """

    def __init__(
        self,
        response: Response,
        progress: Progress,
        endpoint: Endpoint,
        clock: Clock,
        *,
        hide_usage: bool,
        idle_s: float,
        deadline_s: float,
        on_end: Callable[[], None],
    ) -> None:
        self._response = response
        self._progress = progress
        self._hide_usage = hide_usage
        self._idle_s = idle_s
        self._deadline_s = deadline_s
        self._on_end = on_end
        self._clock = clock
        self._splitter = Splitter()
        # When the bytes came that are read now.
        self._came_s = 0.0
        self._reader: Reader = reader_of(endpoint, progress, lambda: self._came_s)
        self._unread: list[bytes] = []
        self._ready: deque[bytes] = deque()
        self._line_open = False
        self._ended = False

    def __aiter__(self) -> UpstreamStream:
        return self

    async def __anext__(self) -> bytes:
        while not self._ready:
            self._catch_up()
            if self._ended:
                raise StopAsyncIteration
            await self._advance()
        return self._ready.popleft()

    async def aclose(self) -> None:
        """Gives the connection up; the upstream sees its client leave. May be called twice."""
        self._ready.clear()
        self._catch_up()
        self._finish()

    async def begin(self, first_byte_s: float) -> None:
        """Waits for the first bytes; `EngineError` while another upstream may still be tried."""
        data = await self._read(first_byte_s)
        if not data:
            raise EngineError("The upstream ended its stream before it began.")
        self._pass_on(data)

    async def _advance(self) -> None:
        try:
            data = await self._read(self._idle_s)
        except EngineError as error:
            self._break_off(str(error))
            return
        if data:
            self._pass_on(data)
        else:
            self._end()

    async def _read(self, limit_s: float) -> bytes:
        until_s = min(asyncio.get_running_loop().time() + limit_s, self._deadline_s)
        try:
            return await self._response.piece(until_s)
        except TimeoutError:
            raise EngineError(f"The upstream was silent for {limit_s:g} s.") from None
        except OSError as error:
            raise EngineError(f"The upstream broke off: {error or type(error).__name__}") from None

    def _pass_on(self, data: bytes) -> None:
        self._came_s = self._clock.monotonic_s()
        events = self._splitter.feed(data)
        if not self._hide_usage:
            self._unread = events
            self._send(data)
        elif kept := [event for event in events if not self._hidden(event)]:
            self._send(b"".join(kept))

    def _hidden(self, event: bytes) -> bool:
        """Whether the client is not to see it; what must be read to know that is read now."""
        self._unread.append(event)
        return _USAGE in event and self._catch_up()

    def _catch_up(self) -> bool:
        """All events that came are read; whether the last one is usage alone."""
        events, self._unread = self._unread, []
        alone = False
        for event in events:
            alone = self._reader.event(event)
        return alone

    def _send(self, data: bytes) -> None:
        self._line_open = not data.endswith((b"\n\n", b"\r\n\r\n", b"\r\r"))
        self._ready.append(data)

    def _end(self) -> None:
        """The upstream's bytes are over: what was held back goes out, and the end is said once."""
        rest = self._splitter.rest()
        if rest:
            self._reader.event(rest)
            if self._hide_usage:
                self._send(rest)
        if not self._reader.done:
            if self._progress.finish_reason is None and not self._progress.failed:
                self._break_off("The upstream ended its stream in the middle of an answer.")
                return
            self._close_line()
            self._ready.append(self._reader.closing())
        self._finish()

    def _break_off(self, message: str) -> None:
        self._progress.failed = True
        error = RequestError(message, status=502, kind="server_error", code="upstream_error")
        self._close_line()
        self._ready.append(self._reader.broken(error))
        self._finish()

    def _close_line(self) -> None:
        if self._line_open:
            self._ready.append(b"\n\n")
            self._line_open = False

    def _finish(self) -> None:
        if not self._ended:
            self._ended = True
            # At its end already, the connection was kept; before, it is closed.
            self._response.close()
            self._on_end()


class OneBody:
    """A body that is there already."""

    def __init__(self, body: bytes) -> None:
        self._body: bytes | None = body

    def __aiter__(self) -> OneBody:
        return self

    async def __anext__(self) -> bytes:
        body, self._body = self._body, None
        if body is None:
            raise StopAsyncIteration
        return body

    async def aclose(self) -> None:
        """Nothing is held."""
        self._body = None


async def read_whole(response: Response, limit_bytes: int) -> bytes:
    """A body of at most `limit_bytes`; `EngineError` beyond."""
    parts: list[bytes] = []
    size = 0
    while part := await response.piece():
        size += len(part)
        if size > limit_bytes:
            raise EngineError(f"The upstream's answer is larger than {limit_bytes} bytes.")
        parts.append(part)
    return b"".join(parts)
