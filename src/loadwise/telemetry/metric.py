"""What a line of the metric table says: name, kind, unit, labels, buckets."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Kind(StrEnum):
    """What Prometheus calls a metric's type."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """One line of the table. Units are base units and end the name, as Prometheus asks."""

    name: str
    kind: Kind
    help: str
    unit: str = ""
    labels: tuple[str, ...] = ()
    # Upper bounds of a histogram's buckets, ascending, without +Inf.
    buckets: tuple[float, ...] = ()
    # Values that each label may take before further ones count as "other".
    label_limit: int = 48
    # A gauge of which several workers each have a part; of others each worker has the whole.
    summed: bool = False
