"""Counters and histograms that cost a dictionary's look-up to record; Prometheus' families when scraped."""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric as Family

from loadwise.telemetry.names import Kind, Metric

Labels = tuple[str, ...]
OTHER = "other"


class Series:
    """The values of the table's counters and histograms; every label takes at most `label_limit` values.

    May be used from several threads.
    """

    def __init__(self, metrics: tuple[Metric, ...], *, label_limit: int = 100) -> None:
        self._metrics = [metric for metric in metrics if metric.kind is not Kind.GAUGE]
        self._label_limit = label_limit
        self._lock = threading.Lock()
        self._counts: dict[str, dict[Labels, float]] = {metric.name: {} for metric in self._metrics}
        # Per labels: requests per bucket, the last beyond all bounds, and their sum.
        self._buckets: dict[str, dict[Labels, list[int]]] = {metric.name: {} for metric in self._metrics}
        self._sums: dict[str, dict[Labels, float]] = {metric.name: {} for metric in self._metrics}
        for metric in self._metrics:
            if not metric.labels:
                self._begin(metric, ())

    def count(self, metric: Metric, labels: Labels, by: float) -> None:
        """Adds `by` (at least 0)."""
        values = self._counts[metric.name]
        with self._lock:
            if labels not in values:
                labels = self._begin(metric, labels)
            values[labels] += by

    def observe(self, metric: Metric, labels: Labels, value: float) -> None:
        """Counts `value` in its bucket."""
        table = self._buckets[metric.name]
        with self._lock:
            if labels not in table:
                labels = self._begin(metric, labels)
            table[labels][bisect_left(metric.buckets, value)] += 1
            self._sums[metric.name][labels] += value

    def mean(self, metric: Metric) -> float | None:
        """The mean of all values of a histogram without labels; None before the first."""
        with self._lock:
            seen = sum(self._buckets[metric.name][()])
            return self._sums[metric.name][()] / seen if seen else None

    def _begin(self, metric: Metric, labels: Labels) -> Labels:
        """Makes room for new labels, within the bound, and says under which they are kept."""
        known = self._known(metric)
        bounded = tuple(
            value if value in seen or len(seen) < self._label_limit else OTHER
            for value, seen in zip(labels, known, strict=True)
        )
        self._counts[metric.name].setdefault(bounded, 0.0)
        if metric.kind is Kind.HISTOGRAM:
            self._buckets[metric.name].setdefault(bounded, [0] * (len(metric.buckets) + 1))
            self._sums[metric.name].setdefault(bounded, 0.0)
        return bounded

    def _known(self, metric: Metric) -> list[set[str]]:
        kept = self._counts[metric.name]
        return [{labels[place] for labels in kept} for place in range(len(metric.labels))]

    def collect(self) -> Iterator[Family]:
        """Every metric of the table with its present values."""
        with self._lock:
            families = [self._family(metric) for metric in self._metrics]
        yield from families

    def _family(self, metric: Metric) -> Family:
        if metric.kind is Kind.COUNTER:
            counter = CounterMetricFamily(metric.name, metric.help, labels=metric.labels)
            for labels, value in self._counts[metric.name].items():
                counter.add_metric(labels, value)
            return counter
        histogram = HistogramMetricFamily(metric.name, metric.help, labels=metric.labels)
        for labels, counts in self._buckets[metric.name].items():
            histogram.add_metric(labels, _cumulative(metric, counts), self._sums[metric.name][labels])
        return histogram


def _cumulative(metric: Metric, counts: list[int]) -> list[tuple[str, float]]:
    total, buckets = 0, []
    for bound, count in zip([*(repr(float(b)) for b in metric.buckets), "+Inf"], counts, strict=True):
        total += count
        buckets.append((bound, float(total)))
    return buckets
