"""An engine client in this process, read through the metrics that it keeps in the process's own registry."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Final

from prometheus_client import REGISTRY

from loadwise.decision.facts import EngineReading
from loadwise.engines.accounting import Accounting
from loadwise.engines.upstream_metrics import MODEL_LABELS, WANTED, scrape_of
from loadwise.ports import Clock

_ENGINES: Final = ("vllm", "aphrodite")


class RegistryReader:
    """Has `reading()`: what a real `AsyncLLM` says of itself; None where it keeps no statistics."""

    def __init__(self, engine_client: Any, replica_id: str, clock: Clock) -> None:
        config = getattr(engine_client, "vllm_config", None) or getattr(
            engine_client, "aphrodite_config", None
        )
        places = getattr(getattr(config, "scheduler_config", None), "max_num_seqs", None)
        self._accounting = Accounting(clock, replica_id, places)
        self._silent = EngineReading(replica_id=replica_id, read_s=0.0, capacity_requests=places)
        self._clock = clock

    @classmethod
    def of(cls, engine_client: Any, replica_id: str, clock: Clock) -> RegistryReader | None:
        """A reader for a client of Aphrodite Engine or vLLM; None for any other object."""
        engine = type(engine_client).__module__.partition(".")[0]
        return cls(engine_client, replica_id, clock) if engine in _ENGINES else None

    def reading(self) -> EngineReading:
        """The engine now; speeds and times since the reading before."""
        scrape = scrape_of(_samples())
        if scrape.empty:
            return replace(self._silent, read_s=self._clock.monotonic_s())
        return self._accounting.scraped(scrape)


def _samples() -> Iterator[tuple[str, str | None, float]]:
    """Of the metrics that we know by name, without rendering the rest."""
    for family in REGISTRY.restricted_registry(WANTED).collect():
        for sample in family.samples:
            if sample.name in WANTED:
                model = next((sample.labels[name] for name in MODEL_LABELS if name in sample.labels), None)
                yield sample.name, model, sample.value
