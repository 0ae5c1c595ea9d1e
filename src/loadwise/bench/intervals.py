"""Intervals of paired differences: the same load met by two ways of serving."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

# Two-sided 95 % quantiles of Student's t for 1 to 30 degrees of freedom, then the normal one.
_T95 = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
    2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip
_NORMAL95 = 1.960


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean and its 95 % confidence interval; the ends are None below two pairs."""

    mean: float
    low: float | None
    high: float | None


def paired_difference(first: Sequence[float], second: Sequence[float]) -> Interval:
    """The mean of `first - second` pair by pair (Student's t); `ValueError` for unequal or no pairs."""
    return _interval([a - b for a, b in zip(first, second, strict=True)])


def paired_ratio(first: Sequence[float], second: Sequence[float]) -> Interval | None:
    """The geometric mean of `first / second` (t on logarithms); None where a value is not above 0."""
    pairs = list(zip(first, second, strict=True))
    if not pairs or any(a <= 0 or b <= 0 for a, b in pairs):
        return None
    logs = _interval([math.log(a / b) for a, b in pairs])
    ends = (None if end is None else math.exp(end) for end in (logs.low, logs.high))
    return Interval(math.exp(logs.mean), *ends)


def _interval(values: Sequence[float]) -> Interval:
    if not values:
        raise ValueError("an interval needs at least one pair")
    mean = fmean(values)
    if len(values) < 2:
        return Interval(mean, None, None)
    freedom = len(values) - 1
    quantile = _T95[freedom - 1] if freedom <= len(_T95) else _NORMAL95
    half = quantile * stdev(values) / math.sqrt(len(values))
    return Interval(mean, mean - half, mean + half)
