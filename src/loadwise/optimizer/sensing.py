"""Readings of the engines and the machine, kept so that nobody waits for them."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from loadwise.decision.facts import EngineReading
from loadwise.logs import get_logger
from loadwise.ports import Engine

log = get_logger(__name__)
# An engine that does not say how it is within this time is unread this time.
OBSERVE_TIMEOUT_S = 2.0


class EngineReadings:
    """The latest reading of each replica; one that cannot be read keeps its last one, which grows stale."""

    def __init__(
        self,
        engines: Callable[[], Mapping[str, Engine]],
        on_observed: Callable[[str, Exception | None], None],
    ) -> None:
        self._engines = engines
        # Hears of every attempt: the replica, and why it could not be read, None where it was.
        self._on_observed = on_observed
        self._latest: dict[str, EngineReading] = {}
        # Readings that were handed in: of engines that are not asked here.
        self._given: dict[str, EngineReading] = {}
        # When each replica's own figures last showed tokens.
        self._tokens_s: dict[str, float] = {}

    async def refresh(self) -> None:
        """Every engine has been asked once, at the same time, each for at most two seconds."""
        engines = self._engines()
        self._latest = {name: reading for name, reading in self._latest.items() if name in engines}
        await asyncio.gather(*(self._observe(name, engine) for name, engine in engines.items()))

    async def _observe(self, replica_id: str, engine: Engine) -> None:
        try:
            async with asyncio.timeout(OBSERVE_TIMEOUT_S):
                reading = replace(await engine.observe(), replica_id=replica_id)
        except Exception as error:  # noqa: BLE001 - an engine of any making may fail in any way; it is told on
            self._on_observed(replica_id, error)
            return
        self._latest[replica_id] = reading
        # A speed is a mean over seconds: it goes on after the last token.
        if reading.last_token_s is not None:
            self._tokens_s[replica_id] = reading.last_token_s
        elif reading.output_tokens_per_s and reading.tokens_counted_live:
            self._tokens_s[replica_id] = reading.read_s
        self._on_observed(replica_id, None)

    def asked(self) -> set[str]:
        """The replicas whose engines are asked now."""
        return set(self._engines())

    def keep(self, reading: EngineReading) -> None:
        """The reading, of an engine that is not asked here, is the latest of its replica."""
        self._given[reading.replica_id] = reading

    def latest(self, replica_ids: Iterable[str] | None = None) -> list[EngineReading]:
        """The latest readings, of all replicas or of those named."""
        known = {**self._given, **self._latest}
        names = known if replica_ids is None else replica_ids
        return [known[name] for name in names if name in known]

    def ages_s(self, now_s: float) -> dict[str, float]:
        """Seconds since each replica that is asked was last read."""
        return {name: now_s - reading.read_s for name, reading in self._latest.items()}

    def shows_tokens(self, replica_id: str, *, stream: bool) -> bool:
        """Whether tokens of such an answer would be seen before it ends; of one that was never read, no."""
        reading = self[replica_id]
        if reading is None:
            return False
        counted = reading.output_tokens_per_s is not None
        if counted and reading.tokens_counted_live:
            return True
        return stream and (counted or reading.last_token_s is not None)

    def last_token_s(self, replica_id: str) -> float | None:
        """When the replica's own figures last showed tokens; None where they never did."""
        return self._tokens_s.get(replica_id)

    def __getitem__(self, replica_id: str) -> EngineReading | None:
        return self._latest.get(replica_id) or self._given.get(replica_id)


def can_be_observed(engine_client: Any) -> bool:
    """Whether an engine client is asked like a replica's engine (`ports.Engine`), by awaiting `observe()`."""
    return inspect.iscoroutinefunction(getattr(engine_client, "observe", None))


def reader_of(engine_client: Any) -> Callable[[], Sequence[EngineReading]] | None:
    """How to read an engine client without waiting, or None when it offers nothing of the kind.

    A client offers itself by a method `reading()` that returns an `EngineReading` or a sequence of them.
    """
    method = getattr(engine_client, "reading", None)
    if not callable(method):
        return None

    def read() -> Sequence[EngineReading]:
        found = method()
        if isinstance(found, EngineReading):
            return [found]
        return [item for item in found or () if isinstance(item, EngineReading)]

    return read
