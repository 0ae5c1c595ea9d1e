"""A second token engine beside a member's own, for requests that need what its own cannot do."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from loadwise.decision.facts import EngineReading, Feature
from loadwise.errors import LoadwiseError, RequestError
from loadwise.logs import get_logger
from loadwise.ports import TokenEngine

log = get_logger(__name__)


class Aside:
    """Offers `features`; the engine is opened by the first request that needs one of them, and stays."""

    def __init__(
        self, features: frozenset[Feature], open_engine: Callable[[], Awaitable[TokenEngine]]
    ) -> None:
        self.features = features
        self._open = open_engine
        self._opening: asyncio.Task[TokenEngine] | None = None

    async def engine(self, field: str) -> TokenEngine:
        """The engine, started; a `RequestError` (400) naming the field where it cannot be.

        No `EngineError`, for the member's own is well.
        """
        if self._opening is None:
            self._opening = asyncio.create_task(self._opened())
        try:
            # Who asked first may leave: others wait for it too.
            return await asyncio.shield(self._opening)
        except LoadwiseError as error:
            raise RequestError(
                f"{field}: this model's own engine does not offer it, and the one beside it cannot be "
                f"started: {error} Leave it out.",
                param=field,
                code="unsupported_parameter",
            ) from None

    async def _opened(self) -> TokenEngine:
        try:
            return await self._open()
        except LoadwiseError as error:
            log.warning("engine_beside_not_started", features=sorted(self.features), reason=str(error))
            raise

    def reading(self) -> EngineReading | None:
        """What the engine says of itself; None while there is none."""
        task = self._opening
        opened = task is not None and task.done() and not task.cancelled() and task.exception() is None
        return task.result().reading() if task is not None and opened else None

    async def close(self) -> None:
        """The engine is closed, where it was opened; one that is being opened is closed once it is."""
        task, self._opening = self._opening, None
        if task is not None:
            (opened,) = await asyncio.gather(task, return_exceptions=True)
            if not isinstance(opened, BaseException):
                await opened.close()
