"""A thread of ours with an event loop of its own, beside the engine's."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from typing import Any, Final, TypeVar

from loadwise.errors import RequestError

T = TypeVar("T")
# How long somebody who asks over HTTP waits for our thread.
ANSWERS_WITHIN_S: Final = 5.0
_STOPS_WITHIN_S: Final = 2.0


class OwnThread:
    """Runs one coroutine until it ends or is stopped; others may ask it for more."""

    def __init__(self, main: Callable[[], Coroutine[Any, Any, None]]) -> None:
        self._main = main
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[None] | None = None
        self._ready = threading.Event()
        # A daemon: whatever it does, the engine's process can end.
        self._thread = threading.Thread(target=self._run, name="loadwise", daemon=True)

    def start(self) -> None:
        """The thread runs."""
        self._thread.start()

    async def ask(self, question: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """The answer to a question that our thread works out; the caller's loop goes on meanwhile.

        Raises `RequestError` 503 where our thread has not begun, or does not answer in time.
        """
        loop = self._loop
        if loop is None:
            raise starting()
        if not self._thread.is_alive():
            raise _silent()
        answer = asyncio.run_coroutine_threadsafe(_begun(question), loop)
        try:
            async with asyncio.timeout(ANSWERS_WITHIN_S):
                return await asyncio.wrap_future(answer)
        except TimeoutError:
            answer.cancel()
            raise _silent() from None
        except asyncio.CancelledError:
            if not answer.cancelled():
                raise
            # Not the caller was cancelled: our thread ended.
            raise _silent() from None

    def stop(self) -> None:
        """The coroutine was cancelled; waits for its end for two seconds at most."""
        if not self._ready.wait(_STOPS_WITHIN_S) or self._loop is None or self._task is None:
            return
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._task.cancel)
        self._thread.join(_STOPS_WITHIN_S)

    def _run(self) -> None:
        # asyncio's own loop: uvloop is the engine's choice for the engine's work.
        with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
            self._loop = runner.get_loop()
            try:
                runner.run(self._followed())
            except asyncio.CancelledError:
                return

    async def _followed(self) -> None:
        self._task = asyncio.current_task()
        self._ready.set()
        await self._main()


async def _begun(question: Callable[[], Coroutine[Any, Any, T]]) -> T:
    # The question's coroutine is made on our loop, so that none is left over where the loop has ended.
    return await question()


def starting() -> RequestError:
    """The answer to who asks too early."""
    return RequestError("Loadwise is starting. Try again.", status=503, kind="server_error", code="starting")


def _silent() -> RequestError:
    return RequestError(
        "Loadwise's own thread does not answer. The engine goes on serving, untouched; its log says more.",
        status=503,
        kind="server_error",
        code="optimizer_silent",
    )
