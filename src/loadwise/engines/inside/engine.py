"""The engine that loadwise runs in, as a replica: it says how it is, and answers its clients itself."""

from __future__ import annotations

from collections.abc import Callable

from loadwise.decision.facts import Capabilities, EngineReading
from loadwise.errors import EngineError
from loadwise.ports import Answer, Call


class EngineInside:
    """`ports.Engine` of the server around us: observed through its own statistics, never called."""

    def __init__(self, reading: Callable[[], EngineReading], context_tokens: int | None) -> None:
        self._reading = reading
        self._capabilities = Capabilities(features_known=False, context_tokens=context_tokens)

    @property
    def capabilities(self) -> Capabilities:
        """Its context; it refuses by itself what it cannot do."""
        return self._capabilities

    async def answer(self, call: Call) -> Answer:
        """Raises `EngineError`: the engine's own server answers, loadwise only looks on."""
        raise EngineError(f"{call.endpoint} is answered by the engine's own server.")

    async def count_tokens(self, call: Call) -> int | None:
        """None: the engine tokenizes by itself."""
        return None

    async def observe(self) -> EngineReading:
        """What its statistics said last."""
        return self._reading()

    async def start(self) -> None:
        """It runs already."""

    async def close(self) -> None:
        """It goes on without us."""
