"""Counters and histograms that cost a dictionary's look-up to record; Prometheus' families when scraped."""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric as Family

from loadwise.telemetry.metric import Kind, Metric

Labels = tuple[str, ...]
OTHER = "other"
# A metric's values by labels: a number each, or a histogram's requests per bucket with their sum at the end.
Snapshot = dict[str, list[tuple[Labels, list[float]]]]


class Series:
    """The values of the table's counters and histograms; every label takes at most its limit of values.

    May be used from several threads.
    """

    def __init__(self, metrics: tuple[Metric, ...], *, label_limit: int | None = None) -> None:
        self._metrics = {metric.name: metric for metric in metrics if metric.kind is not Kind.GAUGE}
        self._label_limit = label_limit
        self._lock = threading.Lock()
        # Counters: one number. Histograms: a count per bucket, the last beyond all bounds, then the sum.
        self._values: dict[str, dict[Labels, list[float]]] = {name: {} for name in self._metrics}
        # Per metric and label, the values that were kept apart so far.
        self._known: dict[str, list[set[str]]] = {
            name: [set() for _ in metric.labels] for name, metric in self._metrics.items()
        }
        for metric in self._metrics.values():
            if not metric.labels:
                self._begin(metric, ())

    def count(self, metric: Metric, labels: Labels, by: float = 1.0) -> None:
        """Adds `by` (at least 0)."""
        values = self._values[metric.name]
        with self._lock:
            cell = values.get(labels)
            if cell is None:
                cell = self._begin(metric, labels)
            cell[0] += by

    def observe(self, metric: Metric, labels: Labels, value: float) -> None:
        """Counts `value` in its bucket."""
        values = self._values[metric.name]
        with self._lock:
            cell = values.get(labels)
            if cell is None:
                cell = self._begin(metric, labels)
            cell[bisect_left(metric.buckets, value)] += 1
            cell[-1] += value

    def mean(self, metric: Metric) -> float | None:
        """The mean of all values of a histogram without labels; None before the first."""
        with self._lock:
            cell = self._values[metric.name][()]
            seen = sum(cell[:-1])
            return cell[-1] / seen if seen else None

    def _begin(self, metric: Metric, labels: Labels) -> list[float]:
        """The place of new labels; beyond a label's limit all further values share one."""
        known = self._known[metric.name]
        limit = self._label_limit or metric.label_limit
        bounded = tuple(
            value if value in seen or len(seen) < limit else OTHER
            for value, seen in zip(labels, known, strict=True)
        )
        for value, seen in zip(bounded, known, strict=True):
            if value != OTHER:
                seen.add(value)
        empty = [0.0] * (len(metric.buckets) + 2 if metric.kind is Kind.HISTOGRAM else 1)
        return self._values[metric.name].setdefault(bounded, empty)

    def snapshot(self) -> Snapshot:
        """A copy of every value."""
        with self._lock:
            return {
                name: [(labels, list(cell)) for labels, cell in values.items()]
                for name, values in self._values.items()
            }

    def families(self, snapshots: Iterable[Snapshot]) -> Iterator[Family]:
        """Prometheus' families of the sum of several snapshots."""
        total = merged(snapshots)
        for name, metric in self._metrics.items():
            yield _family(metric, total.get(name, {}))


def merged(snapshots: Iterable[Snapshot]) -> dict[str, dict[Labels, list[float]]]:
    """The sum of snapshots by metric and labels; cells of another shape (an older version's) are left out."""
    total: dict[str, dict[Labels, list[float]]] = {}
    for snapshot in snapshots:
        for name, values in snapshot.items():
            cells = total.setdefault(name, {})
            for labels, cell in values:
                kept = cells.setdefault(tuple(labels), [0.0] * len(cell))
                if len(kept) == len(cell):
                    kept[:] = [a + b for a, b in zip(kept, cell, strict=True)]
    return total


def _family(metric: Metric, values: Mapping[Labels, list[float]]) -> Family:
    family: Any
    if metric.kind is Kind.COUNTER:
        family = CounterMetricFamily(metric.name, metric.help, labels=metric.labels)
        for labels, cell in values.items():
            family.add_metric(labels, cell[0])
        return family  # type: ignore[no-any-return]
    family = HistogramMetricFamily(metric.name, metric.help, labels=metric.labels)
    for labels, cell in values.items():
        family.add_metric(labels, _cumulative(metric, cell[:-1]), cell[-1])
    return family  # type: ignore[no-any-return]


def _cumulative(metric: Metric, counts: list[float]) -> list[tuple[str, float]]:
    total, buckets = 0.0, []
    for bound, count in zip([*(repr(float(b)) for b in metric.buckets), "+Inf"], counts, strict=True):
        total += count
        buckets.append((bound, total))
    return buckets
