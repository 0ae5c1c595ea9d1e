"""Gauges of one process, or of several as one: each by the rule that its line of the table says."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final

from prometheus_client.core import GaugeMetricFamily

from loadwise.telemetry.metric import Across, Kind
from loadwise.telemetry.names import METRICS
from loadwise.telemetry.series import Labels
from loadwise.telemetry.workers import Gauge

_GAUGES: Final = {metric.name: metric for metric in METRICS if metric.kind is Kind.GAUGE}
_MERGED: Final[Mapping[Across, Callable[[Sequence[float]], float]]] = {
    Across.SUM: sum,
    Across.MAX: max,
    Across.MIN: min,
    # One process, one value.
    Across.EACH: max,
}


def families(
    own: Sequence[Gauge], others: Mapping[int, Sequence[Gauge]] | None
) -> Iterator[GaugeMetricFamily]:
    """Families of this process's gauges and those of others by process id; None where it is alone.

    Those that cannot be merged have a label more: `worker`, the process id.
    """
    found: dict[str, dict[Labels, list[float]]] = {}
    processes = {os.getpid(): own, **(others or {})}
    for process, gauges in processes.items():
        for name, labels, value in gauges:
            metric = _GAUGES.get(name)
            if metric is None:
                # A worker of another version has it.
                continue
            each = others is not None and metric.across is Across.EACH
            where = (*labels, str(process)) if each else tuple(labels)
            found.setdefault(name, {}).setdefault(where, []).append(value)
    for name, cells in found.items():
        yield _family(name, cells, marked=others is not None)


def _family(name: str, cells: Mapping[Labels, list[float]], *, marked: bool) -> GaugeMetricFamily:
    metric = _GAUGES[name]
    each = metric.across is Across.EACH
    labels = (*metric.labels, "worker") if each and marked else metric.labels
    family = GaugeMetricFamily(name, metric.help, labels=labels)
    merged = _MERGED[metric.across]
    for where, values in cells.items():
        family.add_metric(where, merged(values))
    return family
