"""Durations in buckets of equal ratio: quantiles within 2.5 %, sums exact, and two merge into one."""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Iterable
from itertools import accumulate
from math import exp, log
from typing import Final

RATIO: Final = 1.05
_PER_LOG: Final = 1.0 / log(RATIO)
# Shorter ones count as this long.
LEAST_S: Final = 1e-6
# Of those that are packed; never written to.
_NOTHING: Final[dict[int, int]] = {}


class Mean:
    """The mean of durations: two numbers for any count."""

    __slots__ = ("count", "sum_s")

    def __init__(self) -> None:
        self.count = 0
        self.sum_s = 0.0

    def add(self, seconds: float) -> None:
        """Counts one duration (s)."""
        self.count += 1
        self.sum_s += seconds

    def merge(self, other: Mean) -> None:
        """Counts all that `other` counted."""
        self.count += other.count
        self.sum_s += other.sum_s

    @property
    def mean_s(self) -> float | None:
        """The mean; None before the first."""
        return self.sum_s / self.count if self.count else None


class Latencies:
    """How many durations fell where; about a hundred numbers for any count."""

    __slots__ = ("_buckets", "_packed", "count", "sum_s")

    def __init__(self) -> None:
        self._buckets: dict[int, int] = {}
        # Buckets and their counts in turn, once nothing more is expected.
        self._packed: array[int] | None = None
        self.count = 0
        self.sum_s = 0.0

    def add(self, seconds: float) -> None:
        """Counts one duration (s, at least 0)."""
        if self._packed is not None:
            self._unpack()
        bucket = int(log(seconds / LEAST_S) * _PER_LOG) if seconds > LEAST_S else 0
        self._buckets[bucket] = self._buckets.get(bucket, 0) + 1
        self.count += 1
        self.sum_s += seconds

    def merge(self, other: Latencies) -> None:
        """Counts all that `other` counted."""
        if not other.count:
            return
        if self._packed is not None:
            self._unpack()
        buckets = self._buckets
        if buckets:
            for bucket, count in other._items():
                buckets[bucket] = buckets.get(bucket, 0) + count
        else:
            buckets.update(other._items())
        self.count += other.count
        self.sum_s += other.sum_s

    def pack(self) -> None:
        """Takes a quarter of the room from now on, until something is counted again."""
        if self._packed is None:
            self._packed = array("I", [number for item in self._buckets.items() for number in item])
            self._buckets = _NOTHING

    def _unpack(self) -> None:
        self._buckets, self._packed = dict(self._items()), None

    def _items(self) -> Iterable[tuple[int, int]]:
        packed = self._packed
        return self._buckets.items() if packed is None else zip(packed[::2], packed[1::2], strict=True)

    @property
    def mean_s(self) -> float | None:
        """The mean; None before the first."""
        return self.sum_s / self.count if self.count else None

    def quantile_s(self, fraction: float) -> float | None:
        """The duration that a share of `fraction` (0..1) did not exceed; None before the first."""
        return self.quantiles_s(fraction)[0]

    def quantiles_s(self, *fractions: float) -> tuple[float | None, ...]:
        """`quantile_s` of each of `fractions`."""
        if not self.count:
            return (None,) * len(fractions)
        items = sorted(self._items())
        reached = list(accumulate(count for _, count in items))
        ranks = [max(1, -int(-fraction * self.count // 1)) for fraction in fractions]
        found = [items[bisect_left(reached, rank)][0] for rank in ranks]
        return tuple([LEAST_S * exp((bucket + 0.5) / _PER_LOG) for bucket in found])
