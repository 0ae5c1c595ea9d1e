"""Whether a server is there, and what was seen of it since it last joined."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from loadwise.engines.probing import Ask, Probed, Prober
from loadwise.errors import EngineError


class Standing:
    """Probes a server when it joins, and again when it comes back from being away."""

    def __init__(self, ask: Ask, *, probe: bool) -> None:
        self._ask = ask
        self._probe = probe
        self._away = False
        self._returning: asyncio.Task[None] | None = None
        # None while nothing was seen: then nothing is refused on the server's behalf.
        self.seen: Probed | None = None

    def left(self) -> None:
        """The server cannot be reached."""
        self._away = True

    async def joined(self, model: str | None) -> None:
        """The server is there; what it can do with the model has been seen."""
        self._away = False
        if self._probe and model is not None:
            seen = await Prober(self._ask, model).probe()
            self.seen = seen if seen.answered else self.seen

    def answered(self, join: Callable[[], Awaitable[None]]) -> None:
        """The server answered; when it had been away, `join` runs once in the background.

        What came back may be another server.
        """
        if self._away and (self._returning is None or self._returning.done()):
            self._away = False
            self._returning = asyncio.create_task(self._return(join))

    async def _return(self, join: Callable[[], Awaitable[None]]) -> None:
        try:
            await join()
        except EngineError:
            self.left()

    async def close(self) -> None:
        """Nothing runs in the background any more."""
        if self._returning is not None:
            self._returning.cancel()
            await asyncio.gather(self._returning, return_exceptions=True)
