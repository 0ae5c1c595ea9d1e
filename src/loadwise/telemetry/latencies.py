"""Durations in buckets of equal ratio: quantiles within 2.5 %, sums exact, and two merge into one."""

from __future__ import annotations

from math import exp, log
from typing import Final

RATIO: Final = 1.05
_PER_LOG: Final = 1.0 / log(RATIO)
# Shorter ones count as this long.
LEAST_S: Final = 1e-6


class Latencies:
    """How many durations fell where; about a hundred numbers for any count."""

    __slots__ = ("_buckets", "count", "sum_s")

    def __init__(self) -> None:
        self._buckets: dict[int, int] = {}
        self.count = 0
        self.sum_s = 0.0

    def add(self, seconds: float) -> None:
        """Counts one duration (s, at least 0)."""
        bucket = int(log(seconds / LEAST_S) * _PER_LOG) if seconds > LEAST_S else 0
        self._buckets[bucket] = self._buckets.get(bucket, 0) + 1
        self.count += 1
        self.sum_s += seconds

    def merge(self, other: Latencies) -> None:
        """Counts all that `other` counted."""
        buckets = self._buckets
        for bucket, count in other._buckets.items():
            buckets[bucket] = buckets.get(bucket, 0) + count
        self.count += other.count
        self.sum_s += other.sum_s

    @property
    def mean_s(self) -> float | None:
        """The mean; None before the first."""
        return self.sum_s / self.count if self.count else None

    def quantile_s(self, fraction: float) -> float | None:
        """The duration that a share of `fraction` (0..1) did not exceed; None before the first."""
        if not self.count:
            return None
        left = max(1, -int(-fraction * self.count // 1))
        for bucket in sorted(self._buckets):
            left -= self._buckets[bucket]
            if left <= 0:
                return LEAST_S * exp((bucket + 0.5) / _PER_LOG)
        return None
