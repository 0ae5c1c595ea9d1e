"""What happened and what is, as Prometheus reads it: a registry of its own, bounded labels."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, cast

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.metrics_core import Metric as Family

from loadwise.decision.facts import Ending, Objectives, Outcome
from loadwise.decision.outcome import within_objectives
from loadwise.ports import Dispatch
from loadwise.telemetry import names
from loadwise.telemetry.names import METRICS, Kind, Metric

# One gauge's value for its labels; None is "could not be read" and gives no sample.
GaugeValue = tuple[Metric, tuple[str, ...], float | None]
OTHER = "other"


def time_per_output_token_s(outcome: Outcome) -> float | None:
    """Mean seconds per token after the first, or None where it cannot be said."""
    tokens, total, first = outcome.output_tokens, outcome.total_s, outcome.time_to_first_token_s
    if tokens is None or tokens < 2 or total is None or first is None:
        return None
    return max(0.0, total - first) / (tokens - 1)


class _Gauges:
    """Collects gauges when they are asked for, so that they are never stale or invented."""

    def __init__(self) -> None:
        self.sources: list[Callable[[], Iterable[GaugeValue]]] = []

    def collect(self) -> Iterator[Family]:
        families: dict[str, GaugeMetricFamily] = {}
        for metric, labels, value in (item for source in self.sources for item in source()):
            if value is None:
                continue
            if metric.name not in families:
                families[metric.name] = GaugeMetricFamily(metric.name, metric.help, labels=metric.labels)
            families[metric.name].add_metric(labels, float(value))
        yield from families.values()


class _WithoutCreated(CollectorRegistry):
    """A registry that leaves out `_created` samples, which would double every counter's series."""

    def collect(self) -> Iterator[Family]:
        for family in super().collect():
            family.samples = [sample for sample in family.samples if not sample.name.endswith("_created")]
            yield family


class Telemetry:
    """Counters, histograms and gauges of one server; every label takes at most `label_limit` values."""

    def __init__(self, objectives: Objectives | None = None, *, label_limit: int = 100) -> None:
        self.objectives = objectives or Objectives()
        self._label_limit = label_limit
        self._registry = _WithoutCreated()
        self._gauges = _Gauges()
        self._registry.register(cast(Any, self._gauges))
        self._metrics = {
            metric.name: self._make(metric) for metric in METRICS if metric.kind is not Kind.GAUGE
        }
        # Label values seen so far per metric and position: the bound on cardinality.
        self._seen: dict[tuple[str, int], set[str]] = {}
        self._children: dict[tuple[str, tuple[str, ...]], Any] = {}

    def _make(self, metric: Metric) -> MetricWrapperBase:
        if metric.kind is Kind.HISTOGRAM:
            return Histogram(
                metric.name, metric.help, metric.labels, registry=self._registry, buckets=metric.buckets
            )
        return Counter(metric.name, metric.help, metric.labels, registry=self._registry)

    def _bounded(self, metric: Metric, position: int, value: str) -> str:
        seen = self._seen.setdefault((metric.name, position), set())
        if value not in seen and len(seen) >= self._label_limit:
            return OTHER
        seen.add(value)
        return value

    def _child(self, metric: Metric, labels: tuple[str, ...]) -> Any:
        child = self._children.get((metric.name, labels))
        if child is None:
            bounded = tuple(self._bounded(metric, place, value) for place, value in enumerate(labels))
            parent: Any = self._metrics[metric.name]
            child = parent.labels(*bounded) if bounded else parent
            if bounded == labels:
                # Only labels within the bound are cached, so the cache is bounded too.
                self._children[(metric.name, labels)] = child
        return child

    def count(self, metric: Metric, *labels: str, by: float = 1.0) -> None:
        """Adds `by` (at least 0) to a counter."""
        self._child(metric, labels).inc(by)

    def observe(self, metric: Metric, *labels: str, value: float | None) -> None:
        """Records a histogram's value; None records nothing."""
        if value is not None:
            self._child(metric, labels).observe(value)

    def gauges_from(self, source: Callable[[], Iterable[GaugeValue]]) -> None:
        """Asks `source` for gauges at every scrape; values of None give no sample."""
        self._gauges.sources.append(source)

    def decided(self, dispatch: Dispatch, seconds: float) -> None:
        """Counts one decision, its time and the parameters that it changed."""
        self.count(names.DECISIONS, dispatch.member_id, dispatch.strategy, dispatch.reason)
        self.observe(names.DECISION_SECONDS, value=seconds)
        for parameter in dispatch.changes:
            self.count(names.TUNED, parameter)

    def refused(self, status: int) -> None:
        """Counts a request that no engine got."""
        self.count(names.REFUSED, str(status))

    def ended(self, outcome: Outcome, objectives: Objectives | None = None) -> None:
        """Counts how a request ended; what was not measured is not recorded."""
        member = outcome.member_id
        self.count(names.REQUESTS, outcome.route, member, outcome.ending)
        self.count(names.PROMPT_TOKENS, member, by=outcome.prompt_tokens or 0)
        self.count(names.OUTPUT_TOKENS, member, by=outcome.output_tokens or 0)
        if outcome.ending is Ending.SUCCEEDED:
            self.observe(names.REQUEST_SECONDS, member, value=outcome.total_s)
            self.observe(names.FIRST_TOKEN_SECONDS, member, value=outcome.time_to_first_token_s)
            self.observe(names.OUTPUT_TOKEN_SECONDS, member, value=time_per_output_token_s(outcome))
        if within_objectives(objectives or self.objectives, outcome):
            self.count(names.WITHIN_OBJECTIVES, member)

    def mean_decision_ms(self) -> float | None:
        """Mean time of all decisions so far; None before the first."""
        prefix = names.DECISION_SECONDS.name
        count = self._registry.get_sample_value(f"{prefix}_count")
        total = self._registry.get_sample_value(f"{prefix}_sum")
        return None if not count or total is None else 1000.0 * total / count

    def render(self, accept: str | None = None) -> tuple[bytes, str]:
        """The exposition in the format that `accept` asks for, and its content type."""
        encoder, content_type = choose_encoder(accept or "")
        return encoder(self._registry), content_type

    def value(self, metric: Metric, labels: Mapping[str, str] | None = None) -> float | None:
        """A sample's present value by its full name, or None where there is none."""
        return self._registry.get_sample_value(metric.name, dict(labels or {}))
