"""What a line of the metric table says: name, kind, unit, labels, buckets."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Kind(StrEnum):
    """What Prometheus calls a metric's type."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


class Across(StrEnum):
    """How the gauges of several worker processes become one; `each` has a label `worker`, its process id."""

    EACH = "each"
    SUM = "sum"
    MAX = "max"
    MIN = "min"


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
    # What one answer says of a gauge that several workers have.
    across: Across = Across.EACH

    @property
    def summed(self) -> bool:
        """Whether workers each have a part of it."""
        return self.across is Across.SUM
