"""The child process as the event loop sees it: a pipe in, frames out, and its end."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable
from typing import Any

from loadwise.engines.openvino.wire import Frames, News, frame

COMMAND = ("-m", "loadwise.engines.openvino.worker")
# How long a child may take to end by itself after its input is closed: a step or two.
CLOSE_S = 5.0


class Child(asyncio.SubprocessProtocol):
    """One running worker. `on_news` gets its messages, `on_end` is called once when it is gone."""

    def __init__(self, on_news: Callable[[News], None], on_end: Callable[[], None]) -> None:
        self._on_news = on_news
        self._on_end = on_end
        self._frames: Frames[News] = Frames(News)
        self._transport: asyncio.SubprocessTransport
        self._input: Any = None
        self.ended = asyncio.Event()

    async def start(self) -> None:
        """Starts the process with this one's interpreter and environment."""
        loop = asyncio.get_running_loop()
        self._transport, _ = await loop.subprocess_exec(
            lambda: self, sys.executable, *COMMAND, stdin=-1, stdout=-1, stderr=None, env=_environment()
        )
        self._input = self._transport.get_pipe_transport(0)

    @property
    def pid(self) -> int | None:
        """The process id."""
        return self._transport.get_pid()

    def send(self, message: object) -> None:
        """Writes a message; nothing when the child is gone."""
        if not self.ended.is_set():
            self._input.write(frame(message))

    async def stop(self) -> None:
        """Closes its input and waits for its end; kills it when that takes too long."""
        self._input.close()
        try:
            async with asyncio.timeout(CLOSE_S):
                await self.ended.wait()
        except TimeoutError:
            self._transport.kill()
            await self.ended.wait()

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        """Hands on the messages that these bytes complete."""
        for news in self._frames.feed(data):
            self._on_news(news)

    def connection_lost(self, exc: Exception | None) -> None:
        """Says once that the child is gone, after its last words were read."""
        self._transport.close()
        self.ended.set()
        self._on_end()


def _environment() -> dict[str, str]:
    """This process's environment, with its own import path for an uninstalled checkout."""
    paths = [path for path in sys.path if path]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
