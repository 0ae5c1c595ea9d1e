"""Errors and quality, compared between conversations that chance sent with or without optimisation.

Requests of one conversation are alike, so conversations are gathered in groups by a hash, and the groups are
the independent units (random groups: Wolter 2007, "Introduction to Variance Estimation", chapter 2).
Latency is not compared here: requests of both kinds wait in the same queue.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Final

from loadwise.decision.improvement import Amount
from loadwise.decision.intervals import Interval, around

GROUPS: Final = 64
# Requests without optimisation, and groups of either kind, before which nothing is said.
FIRST_LOOK: Final = 100
GROUPS_NEEDED: Final = 10
# Requests without optimisation at which intervals are narrowest for their kind.
NARROWEST_AT: Final = 1000.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """The mean of one outcome without and with optimisation, and the difference (optimised minus not).

    `difference` is None before the first look, a mean before the first request.
    """

    optimised: float | None
    unoptimised: float | None
    requests_optimised: int
    requests_unoptimised: int
    difference: Interval | None


def compared(optimised: Sequence[Amount], unoptimised: Sequence[Amount], *, most: float = 1.0) -> Compared:
    """The comparison of an outcome between 0 and `most`; one amount per group of conversations."""
    on, off = _Kind.of(optimised), _Kind.of(unoptimised)
    ready = off.requests >= FIRST_LOOK and min(on.groups, off.groups) >= GROUPS_NEEDED
    return Compared(
        optimised=on.mean,
        unoptimised=off.mean,
        requests_optimised=int(on.requests),
        requests_unoptimised=int(off.requests),
        difference=_difference(on, off, most) if ready and on.requests >= FIRST_LOOK else None,
    )


@dataclass(frozen=True, slots=True)
class _Kind:
    requests: float
    total: float
    groups: int
    # Of the mean, between groups.
    variance: float

    @property
    def mean(self) -> float | None:
        return self.total / self.requests if self.requests else None

    @classmethod
    def of(cls, amounts: Sequence[Amount]) -> _Kind:
        seen = [amount for amount in amounts if amount.requests]
        requests, total = sum(a.requests for a in seen), sum(a.total for a in seen)
        if len(seen) < 2:
            return cls(requests, total, len(seen), 0.0)
        mean = total / requests
        spread = sum((a.total - mean * a.requests) ** 2 for a in seen) / requests**2
        return cls(requests, total, len(seen), spread * len(seen) / (len(seen) - 1))


def _difference(on: _Kind, off: _Kind, most: float) -> Interval:
    """Both errors count, none below what independent requests would give."""
    value = on.total / on.requests - off.total / off.requests
    error = sqrt(sum(max(kind.variance, _least_variance(kind, most)) for kind in (on, off)))
    seen = min(on.requests, off.requests) / NARROWEST_AT
    degrees = min(on.groups, off.groups) - 1.0
    return around(value, error, evidence=seen, degrees=degrees).clipped(-most, most)


def _least_variance(kind: _Kind, most: float) -> float:
    """Agresti and Coull's: a share that was never seen is not impossible."""
    share = (kind.total / most + 2.0) / (kind.requests + 4.0)
    return most * most * share * (1.0 - share) / (kind.requests + 4.0)
