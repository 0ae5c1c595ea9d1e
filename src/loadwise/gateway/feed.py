"""The page's live values as server-sent events: made once a second for all viewers, never waiting for one."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Final

import msgspec
from starlette.responses import Response

from loadwise.errors import RequestError
from loadwise.gateway.asgi import Receive, Scope, Send
from loadwise.ports import JsonObject

_log = logging.getLogger("loadwise.gateway")
PERIOD_S: Final = 1.0
MOST_VIEWERS: Final = 50
# Events that may wait for a viewer before it is dropped.
BEHIND: Final = 5
HEADERS: Final = {"cache-control": "no-store", "x-accel-buffering": "no"}
_FULL = RequestError(
    f"{MOST_VIEWERS} viewers are watching; close another page and try again.",
    status=503,
    kind="server_error",
    code="too_many_viewers",
    retry_after_s=10.0,
)


def event(name: str, value: object) -> bytes:
    """One server-sent event; JSON has no line breaks of its own."""
    return b"event: %b\ndata: %b\n\n" % (name.encode("ascii"), msgspec.json.encode(value))


class Viewer:
    """Events on their way to one viewer; None ends them."""

    def __init__(self) -> None:
        self.events: asyncio.Queue[bytes | None] = asyncio.Queue(BEHIND)
        self.dropped = asyncio.Event()


class Feed:
    """Sends `first()` to each viewer and then `frame()` to all, once a period, while there is a viewer.

    `draining` says that the server stops: viewers are then let go.
    """

    def __init__(
        self,
        first: Callable[[], Awaitable[JsonObject]],
        frame: Callable[[], Awaitable[JsonObject]],
        *,
        draining: Callable[[], bool] = lambda: False,
        period_s: float = PERIOD_S,
    ) -> None:
        self._first = first
        self._frame = frame
        self._draining = draining
        self._period_s = period_s
        self._viewers: set[Viewer] = set()
        self._task: asyncio.Task[None] | None = None

    @property
    def viewers(self) -> int:
        """How many watch now."""
        return len(self._viewers)

    async def watch(self) -> FeedResponse:
        """An answer that streams until the viewer leaves; `RequestError` 503 when too many watch."""
        if len(self._viewers) >= MOST_VIEWERS:
            raise _FULL
        viewer = Viewer()
        # Counted before anything is awaited, so that the bound holds.
        self._viewers.add(viewer)
        try:
            viewer.events.put_nowait(event("timeline", await self._first()))
            viewer.events.put_nowait(event("frame", await self._frame()))
        except BaseException:
            self._viewers.discard(viewer)
            raise
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run(), name="loadwise-feed")
        return FeedResponse(self, viewer)

    def leave(self, viewer: Viewer) -> None:
        """The viewer is watched for no more."""
        self._viewers.discard(viewer)

    async def _run(self) -> None:
        while self._viewers and not self._draining():
            await asyncio.sleep(self._period_s)
            try:
                data = event("frame", await self._frame())
            except Exception:  # noqa: BLE001 - a figure that cannot be made must not end the page
                _log.exception("the page's values could not be read")
                data = event("trouble", {"message": "The values could not be read; the log says why."})
            for viewer in list(self._viewers):
                self._send(viewer, data)
        for viewer in list(self._viewers):
            self._end(viewer)

    def _send(self, viewer: Viewer, data: bytes) -> None:
        try:
            viewer.events.put_nowait(data)
        except asyncio.QueueFull:
            _log.info("a viewer of the page was dropped: it took nothing for %d events", BEHIND)
            viewer.dropped.set()
            self.leave(viewer)

    def _end(self, viewer: Viewer) -> None:
        """The viewer's stream ends as it should, or at once where it is behind."""
        self.leave(viewer)
        try:
            viewer.events.put_nowait(None)
        except asyncio.QueueFull:
            viewer.dropped.set()


class FeedResponse(Response):
    """Streams a viewer's events until it leaves, is dropped, or the server stops."""

    media_type = "text/event-stream"

    def __init__(self, feed: Feed, viewer: Viewer, status_code: int = 200) -> None:
        super().__init__(b"", status_code, headers=HEADERS, media_type=self.media_type)
        # The length of what will be sent is not known.
        self.raw_headers = [item for item in self.raw_headers if item[0] != b"content-length"]
        self._feed = feed
        self._viewer = viewer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The events are sent; whatever ends them, the viewer's place is free afterwards."""
        ends = [asyncio.create_task(part) for part in (self._left(receive), self._viewer.dropped.wait())]
        sending = asyncio.create_task(self._events(send))
        try:
            await asyncio.wait([sending, *ends], return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._feed.leave(self._viewer)
            for task in (sending, *ends):
                task.cancel()
            await asyncio.gather(sending, *ends, return_exceptions=True)

    async def _events(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        while (data := await self._viewer.events.get()) is not None:
            await send({"type": "http.response.body", "body": data, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _left(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            continue
