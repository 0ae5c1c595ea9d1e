"""The background loop: a whole turn every tuning interval, a cheap look at load once a second."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Final

PROBE_S: Final = 1.0


class ControlLoop:
    """Runs `tune` every `interval_s()` seconds and `probe` once a second between; neither may raise."""

    def __init__(
        self,
        tune: Callable[[], Awaitable[None]],
        probe: Callable[[], Awaitable[None]],
        interval_s: Callable[[], float],
        *,
        probe_s: float = PROBE_S,
    ) -> None:
        self._tune = tune
        self._probe = probe
        self._interval_s = interval_s
        self._probe_s = probe_s
        self._task: asyncio.Task[None] | None = None
        self._woken = asyncio.Event()

    @property
    def running(self) -> bool:
        """Whether the loop turns."""
        return self._task is not None and not self._task.done()

    async def start(self) -> None:
        """The first turn is done and the loop goes on; nothing happens when it already runs."""
        if self.running:
            return
        self._woken.clear()
        await self._tune()
        if not self.running:
            self._task = asyncio.create_task(self._run(), name="loadwise-control-loop")

    async def stop(self) -> None:
        """The loop has ended; nothing happens when it does not run."""
        task, self._task = self._task, None
        if task is None:
            return
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task

    def wake(self) -> None:
        """The next whole turn comes at once, for example after a change of configuration."""
        self._woken.set()

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        due_s = loop.time() + self._interval_s()
        while True:
            left_s = max(0.0, due_s - loop.time())
            if await self._pause(min(left_s, self._probe_s)) or loop.time() >= due_s:
                await self._tune()
                due_s = loop.time() + self._interval_s()
            else:
                await self._probe()

    async def _pause(self, seconds: float) -> bool:
        """Waits, or until woken (True)."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._woken.wait()
        woken = self._woken.is_set()
        self._woken.clear()
        return woken
