"""What happened and what is, as Prometheus reads it: a registry of its own, bounded labels."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import cast

from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector

from loadwise.decision.facts import Ending, Outcome
from loadwise.ports import Dispatch
from loadwise.telemetry import names
from loadwise.telemetry.names import METRICS, Metric
from loadwise.telemetry.series import Series

# One gauge's value for its labels; None is "could not be read" and gives no sample.
GaugeValue = tuple[Metric, tuple[str, ...], float | None]


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


class Telemetry:
    """Counters, histograms and gauges of one server; every label takes at most `label_limit` values."""

    def __init__(self, *, label_limit: int = 100) -> None:
        self._registry = CollectorRegistry()
        self._gauges = _Gauges()
        self._series = Series(METRICS, label_limit=label_limit)
        self._registry.register(cast(Collector, self._gauges))
        self._registry.register(cast(Collector, self._series))

    def count(self, metric: Metric, *labels: str, by: float = 1.0) -> None:
        """Adds `by` (at least 0) to a counter."""
        self._series.count(metric, labels, by)

    def observe(self, metric: Metric, *labels: str, value: float | None) -> None:
        """Records a histogram's value; None records nothing."""
        if value is not None:
            self._series.observe(metric, labels, value)

    def gauges_from(self, source: Callable[[], Iterable[GaugeValue]]) -> None:
        """Asks `source` for gauges at every scrape; values of None give no sample."""
        self._gauges.sources.append(source)

    def decided(self, dispatch: Dispatch, seconds: float) -> None:
        """Counts one decision, its time and the parameters that it changed."""
        self.count(names.DECISIONS, dispatch.member_id, dispatch.strategy.value, dispatch.reason)
        self.observe(names.DECISION_SECONDS, value=seconds)
        for parameter in dispatch.changes:
            self.count(names.TUNED, parameter)

    def refused(self, status: int) -> None:
        """Counts a request that no engine got."""
        self.count(names.REFUSED, str(status))

    def ended(self, outcome: Outcome, within: bool | None = None) -> None:
        """Counts how a request ended; what was not measured is not recorded."""
        series, member = self._series, (outcome.member_id,)
        series.count(names.REQUESTS, (outcome.route, outcome.member_id, outcome.ending.value), 1.0)
        series.count(names.PROMPT_TOKENS, member, outcome.prompt_tokens or 0)
        series.count(names.OUTPUT_TOKENS, member, outcome.output_tokens or 0)
        if outcome.ending is Ending.SUCCEEDED:
            self.observe(names.REQUEST_SECONDS, outcome.member_id, value=outcome.total_s)
            self.observe(names.FIRST_TOKEN_SECONDS, outcome.member_id, value=outcome.time_to_first_token_s)
            self.observe(
                names.OUTPUT_TOKEN_SECONDS, outcome.member_id, value=time_per_output_token_s(outcome)
            )
        if within:
            series.count(names.WITHIN_OBJECTIVES, member, 1.0)

    def mean_decision_ms(self) -> float | None:
        """Mean time of all decisions so far; None before the first."""
        mean_s = self._series.mean(names.DECISION_SECONDS)
        return None if mean_s is None else 1000.0 * mean_s

    def render(self, accept: str | None = None) -> tuple[bytes, str]:
        """The exposition in the format that `accept` asks for, and its content type."""
        encoder, content_type = choose_encoder(accept or "")
        return encoder(self._registry), content_type

    def value(self, metric: Metric, labels: Mapping[str, str] | None = None) -> float | None:
        """A sample's present value by its full name, or None where there is none."""
        return self._registry.get_sample_value(metric.name, dict(labels or {}))
