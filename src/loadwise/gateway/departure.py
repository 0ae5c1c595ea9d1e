"""Notices that a client left, while something else is awaited."""

from __future__ import annotations

import asyncio
from types import TracebackType

from loadwise.errors import LoadwiseError
from loadwise.gateway.asgi import Receive

# Answers that come sooner need no watching: a task costs more than the work it could save.
WATCH_AFTER_S = 0.02


class ClientLeft(LoadwiseError):
    """The client closed its connection before its answer was complete."""


class Departure:
    """Inside `async with Departure(receive):` the client's leaving cancels the block.

    The block then ends with `ClientLeft`. A cancellation from elsewhere stays a `CancelledError`.
    The request's body must have been read: `receive` then reports nothing but the leaving.
    """

    __slots__ = ("_inside", "_receive", "_task", "_timer", "_watcher", "left")

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._inside = False
        self._watcher: asyncio.Task[None] | None = None
        self.left = False

    async def __aenter__(self) -> Departure:
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("a departure is watched from inside a task")
        self._task = task
        self._inside = True
        self._timer = asyncio.get_running_loop().call_later(WATCH_AFTER_S, self._begin)
        return self

    def _begin(self) -> None:
        self._watcher = asyncio.create_task(self._watch())

    async def _watch(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            continue
        if self._inside:
            self.left = True
            self._task.cancel()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._inside = False
        self._timer.cancel()
        if self._watcher is not None:
            self._watcher.cancel()
        if self.left and self._task.uncancel() == 0 and kind is asyncio.CancelledError:
            raise ClientLeft("the client left") from None
