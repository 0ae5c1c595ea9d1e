"""What is seen of an answer that passes by: noted with next to no work, understood when it is over."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Final

from starlette.requests import ClientDisconnect

from loadwise.decision.facts import Ending, Outcome
from loadwise.engines.dialects import reader_of
from loadwise.engines.events import Splitter
from loadwise.gateway.asgi import Message
from loadwise.ports import Dispatch, Progress

# Messages of a stream that are kept from its beginning and from its end: the first token's time, and
# usage, are there. Those between count as one token each.
KEPT: Final = 4
# A whole answer beyond this is not read: its tokens are unknown.
READ_AT_MOST_BYTES: Final = 4 * 1024**2
_CLIENT_LEFT: Final = (asyncio.CancelledError, ClientDisconnect, OSError)


class Seen:
    """The answer to one dispatched request."""

    __slots__ = (
        "_bytes",
        "_complete",
        "_ended_s",
        "_error",
        "_first",
        "_last",
        "_left",
        "_messages",
        "_status",
        "_streamed",
        "dispatch",
    )

    def __init__(self, dispatch: Dispatch) -> None:
        self.dispatch = dispatch
        self._status: int | None = None
        self._streamed = False
        self._messages = 0
        self._bytes = 0
        # Messages with the time at which they passed, in seconds.
        self._first: list[tuple[float, bytes]] = []
        self._last: deque[tuple[float, bytes]] = deque(maxlen=KEPT)
        self._complete = False
        self._left = False
        self._error: BaseException | None = None
        self._ended_s = dispatch.started_s

    def started(self, message: Message) -> None:
        """The answer's head passes."""
        self._status = message["status"]
        self._streamed = any(
            name == b"content-type" and value.startswith(b"text/event-stream")
            for name, value in message["headers"]
        )

    def passed(self, message: Message, now_s: float) -> None:
        """A piece of the answer passes."""
        if not message.get("more_body"):
            self._complete = True
        body = message.get("body")
        if not body:
            return
        self._messages += 1
        self._bytes += len(body)
        if len(self._first) < KEPT or (not self._streamed and self._bytes <= READ_AT_MOST_BYTES):
            self._first.append((now_s, body))
        else:
            self._last.append((now_s, body))

    def left(self) -> None:
        """The client is gone; after a complete answer that says nothing."""
        self._left = self._left or not self._complete

    def ended(self, error: BaseException | None, now_s: float) -> None:
        """Nothing more comes."""
        self._error = error
        self._ended_s = now_s

    def outcome(self) -> Outcome:
        """How it went; work for a thread that serves nobody."""
        dispatch, progress = self.dispatch, self._progress()
        first_s, began_s = progress.first_token_s, dispatch.started_s
        return Outcome(
            request_id=dispatch.request.request_id,
            member_id=dispatch.member_id,
            replica_id=dispatch.replica_id,
            ending=self._ending(progress),
            finished_s=self._ended_s,
            route=dispatch.request.model,
            total_s=self._ended_s - began_s,
            time_to_first_token_s=None if first_s is None else max(0.0, first_s - began_s),
            prompt_tokens=progress.prompt_tokens,
            cached_tokens=progress.cached_tokens,
            output_tokens=progress.output_tokens,
            finish_reason=progress.finish_reason,
            concurrency=dispatch.concurrency,
            work=dispatch.work,
            load_score=dispatch.load_score,
            status=self._status,
            control=dispatch.control,
        )

    def _ending(self, progress: Progress) -> Ending:
        if self._left or isinstance(self._error, _CLIENT_LEFT):
            return Ending.ABANDONED
        whole = self._error is None and self._complete and self._status is not None
        if not whole or progress.failed or (self._status or 0) >= 400:
            return Ending.FAILED
        return Ending.SUCCEEDED

    def _progress(self) -> Progress:
        progress = Progress()
        if not self._streamed:
            if self._bytes <= READ_AT_MOST_BYTES:
                reader = reader_of(self.dispatch.request.endpoint, progress, lambda: 0.0)
                reader.whole(b"".join([body for _, body in self._first]))
                # Nobody sees the first token of an answer that comes whole.
                progress.first_token_s = None
            return progress
        self._read_events(progress)
        return progress

    def _read_events(self, progress: Progress) -> None:
        now_s = 0.0
        reader = reader_of(self.dispatch.request.endpoint, progress, lambda: now_s)
        for part in (self._first, self._last):
            splitter = Splitter()
            for now_s, body in part:  # noqa: B007 - the reader's clock reads it
                for event in splitter.feed(body):
                    reader.event(event)
        if progress.prompt_tokens is None and progress.output_tokens is not None:
            progress.output_tokens += self._messages - len(self._first) - len(self._last)
