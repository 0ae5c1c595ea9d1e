"""What happened and what is, as Prometheus reads it: a registry of its own, bounded labels."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final, cast

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector

from loadwise.decision.facts import Ending, Outcome
from loadwise.decision.fault import Fault, fault_of, shown_ending
from loadwise.ports import Dispatch
from loadwise.telemetry import names
from loadwise.telemetry.metric import Metric
from loadwise.telemetry.names import METRICS
from loadwise.telemetry.series import Series, Snapshot
from loadwise.telemetry.shared_gauges import families
from loadwise.telemetry.workers import Gauge, Workers

# One gauge's value for its labels; None is "could not be read" and gives no sample.
GaugeValue = tuple[Metric, tuple[str, ...], float | None]
# What is told of requests is counted so many at a time: each then costs a fraction of what it costs alone.
TOGETHER: Final = 16
# Stands where a member would: no engine got the request.
NO_MEMBER: Final = "none"


def time_per_output_token_s(outcome: Outcome) -> float | None:
    """Mean seconds per token after the first, or None where it cannot be said."""
    tokens, total, first = outcome.output_tokens, outcome.total_s, outcome.time_to_first_token_s
    if tokens is None or tokens < 2 or total is None or first is None:
        return None
    return max(0.0, total - first) / (tokens - 1)


class Telemetry:
    """Counters, histograms and gauges of one server; every label takes at most `label_limit` values."""

    def __init__(self, *, label_limit: int | None = None) -> None:
        self._registry = CollectorRegistry()
        self._series = Series(METRICS, label_limit=label_limit)
        self._workers: Workers | None = None
        self._gauge_sources: list[Callable[[], Iterable[GaugeValue]]] = []
        # Decisions with their seconds, and outcomes, that are not counted yet.
        self._told: deque[tuple[Dispatch, float] | tuple[Outcome, bool | None]] = deque()
        self._registry.register(cast(Collector, self))

    def share(self, folder: Path) -> None:
        """From now on `/metrics` answers for every process that shares `folder`."""
        self._workers = Workers(folder, self._snapshot, self._totals)

    def close(self) -> None:
        """What was counted is with the processes that share it."""
        if self._workers is not None:
            self._workers.close()

    def count(self, metric: Metric, *labels: str, by: float = 1.0) -> None:
        """Adds `by` (at least 0) to a counter."""
        self._series.count(metric, labels, by)

    def observe(self, metric: Metric, *labels: str, value: float | None) -> None:
        """Records a histogram's value; None records nothing."""
        if value is not None:
            self._series.observe(metric, labels, value)

    def gauges_from(self, source: Callable[[], Iterable[GaugeValue]]) -> None:
        """Asks `source` for gauges at every scrape; values of None give no sample."""
        self._gauge_sources.append(source)

    def decided(self, dispatch: Dispatch, seconds: float) -> None:
        """Counts one decision, its time and the parameters that it changed."""
        self._tell((dispatch, seconds))

    def ended(self, outcome: Outcome, within: bool | None = None) -> None:
        """Counts how a request ended; what was not measured is not recorded."""
        self._tell((outcome, within))

    def _tell(self, told: tuple[Dispatch, float] | tuple[Outcome, bool | None]) -> None:
        self._told.append(told)
        if len(self._told) >= TOGETHER:
            self._fold()

    def _fold(self) -> None:
        """Everything that was told is counted; may be called from any thread."""
        told = self._told
        while told:
            try:
                fact, more = told.popleft()
            except IndexError:
                # Another thread took the last one.
                return
            if isinstance(fact, Outcome):
                self._ended(fact, more)  # type: ignore[arg-type]
            else:
                self._decided(fact, more)  # type: ignore[arg-type]

    def _decided(self, dispatch: Dispatch, seconds: float) -> None:
        self.count(names.DECISIONS, dispatch.member_id, dispatch.strategy.value, dispatch.reason)
        self.observe(names.DECISION_SECONDS, value=seconds)
        for parameter in dispatch.changes:
            self.count(names.TUNED, parameter)

    def refused(self, status: int) -> None:
        """Counts a request that no engine got."""
        self.count(names.REFUSED, str(status))

    def missed(self, route: str) -> None:
        """Counts a request that missed its objectives because it was turned away."""
        self.count(names.WITHIN_OBJECTIVES, route, NO_MEMBER, by=0.0)
        self.count(names.MISSED_OBJECTIVES, route, NO_MEMBER)

    def answered(self, path: str, status: int | None) -> None:
        """Counts an HTTP request by its route's path and the status sent; None: its client left before."""
        self._series.count(names.HTTP_REQUESTS, (path, "client_left" if status is None else str(status)))

    def _ended(self, outcome: Outcome, within: bool | None) -> None:
        series, member = self._series, (outcome.member_id,)
        series.count(names.REQUESTS, (outcome.route, outcome.member_id, shown_ending(outcome)), 1.0)
        series.count(names.PROMPT_TOKENS, member, outcome.prompt_tokens or 0)
        series.count(names.OUTPUT_TOKENS, member, outcome.output_tokens or 0)
        if outcome.ending is Ending.SUCCEEDED:
            self.observe(names.REQUEST_SECONDS, outcome.member_id, value=outcome.total_s)
            self.observe(names.FIRST_TOKEN_SECONDS, outcome.member_id, value=outcome.time_to_first_token_s)
            self.observe(
                names.OUTPUT_TOKEN_SECONDS, outcome.member_id, value=time_per_output_token_s(outcome)
            )
        if fault_of(outcome) is Fault.MEMBER:
            series.count(names.FAULTS, member)
        if within is not None:
            # Both always, so that a share can be taken of a route that only ever met, or missed, them.
            labels = outcome.route, outcome.member_id
            series.count(names.WITHIN_OBJECTIVES, labels, float(within))
            series.count(names.MISSED_OBJECTIVES, labels, float(not within))

    def mean_decision_ms(self) -> float | None:
        """Mean time of all decisions so far; None before the first."""
        self._fold()
        mean_s = self._series.mean(names.DECISION_SECONDS)
        return None if mean_s is None else 1000.0 * mean_s

    def collect(self) -> Iterator[Family]:
        """Every metric with its present values, of all workers where there are several."""
        series, gauges = ([], None) if self._workers is None else self._workers.others()
        yield from self._series.families([self._snapshot(), *series])
        yield from families(self._totals(), gauges)

    def _snapshot(self) -> Snapshot:
        self._fold()
        return self._series.snapshot()

    def _totals(self) -> list[Gauge]:
        """This process's gauges; values of the same labels (several subjects of an alert) are summed."""
        totals: dict[tuple[str, tuple[str, ...]], float] = {}
        for metric, labels, value in (item for source in self._gauge_sources for item in source()):
            if value is not None:
                totals[metric.name, labels] = totals.get((metric.name, labels), 0.0) + float(value)
        return [(name, labels, value) for (name, labels), value in totals.items()]

    def render(self, accept: str | None = None) -> tuple[bytes, str]:
        """The exposition in the format that `accept` asks for, and its content type."""
        encoder, content_type = choose_encoder(accept or "")
        return encoder(self._registry), content_type

    def value(self, metric: Metric, labels: Mapping[str, str] | None = None) -> float | None:
        """A sample's present value by its full name, or None where there is none."""
        return self._registry.get_sample_value(metric.name, dict(labels or {}))
