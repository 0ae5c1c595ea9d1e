"""The reader's end of a sequence that is generated elsewhere: in a thread, in a child."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from loadwise.errors import EngineError
from loadwise.ports import TokenEvent


class QueuedStream:
    """A `TokenStream` fed on the event loop with `push`; what a slow reader missed comes in one event."""

    __slots__ = ("_cancel", "_ended", "_items", "_waiter")

    def __init__(self, cancel: Callable[[], None]) -> None:
        self._cancel = cancel
        self._items: deque[TokenEvent | EngineError] = deque()
        self._waiter: asyncio.Future[None] | None = None
        # No more will come.
        self._ended = False

    def push(self, item: TokenEvent | EngineError) -> None:
        """Hands over an event, or the failure that ends the stream; nothing after the end."""
        if self._ended:
            return
        self._items.append(item)
        self._ended = isinstance(item, EngineError) or item.finish_reason is not None
        self._wake()

    def cancel(self) -> None:
        """Frees the place; the reader's loop ends. May be called twice, also after the end."""
        if not self._ended:
            self._ended = True
            self._cancel()
            self._wake()

    def __aiter__(self) -> QueuedStream:
        return self

    async def __anext__(self) -> TokenEvent:
        items = self._items
        while not items:
            if self._ended:
                raise StopAsyncIteration
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        item = items.popleft()
        if isinstance(item, EngineError):
            raise item
        return self._joined(item) if items else item

    def _joined(self, first: TokenEvent) -> TokenEvent:
        """All events that wait, as one."""
        events = [first]
        while self._items and not isinstance(self._items[0], EngineError):
            event = self._items.popleft()
            if isinstance(event, TokenEvent):
                events.append(event)
        ids = tuple(token for event in events for token in event.token_ids)
        with_logprobs = first.logprobs is not None
        return TokenEvent(
            token_ids=ids,
            logprobs=tuple(p for event in events for p in event.logprobs or ()) if with_logprobs else None,
            top_logprobs=(
                None
                if first.top_logprobs is None
                else tuple(top for event in events for top in event.top_logprobs or ())
            ),
            finish_reason=events[-1].finish_reason,
            queued_s=first.queued_s,
        )

    def _wake(self) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)
