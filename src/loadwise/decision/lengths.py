"""How long answers are that end by themselves: a quantile sketch of bounded size.

Buckets grow by 10 %, so a quantile is never below the truth and at most 10 % above it (the idea of
DDSketch, Masson et al. 2019, section 2).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, log
from typing import Final

GROWTH: Final = 1.1
# Reaches 1.1 ** 144, about 900,000 tokens; longer answers count in the last bucket.
BUCKETS: Final = 145
# From here on all counts are halved, so that old answers fade.
FULL: Final = 20_000
_LOG_GROWTH: Final = log(GROWTH)


@dataclass(frozen=True, slots=True)
class LengthSketch:
    """Counts of answer lengths in tokens; `p99_tokens` is None before the first."""

    counts: tuple[int, ...] = ()
    total: int = 0
    p99_tokens: int | None = None

    def add(self, tokens: int) -> LengthSketch:
        """The sketch with one more answer of `tokens` (below 1 counts as 1)."""
        place = bucket(tokens)
        counts = self.counts or (0,) * BUCKETS
        counts = (*counts[:place], counts[place] + 1, *counts[place + 1 :])
        total = self.total + 1
        if total >= FULL:
            counts = tuple(count // 2 for count in counts)
            total = sum(counts)
        # The far tail moves slowly: reading it off every time would be most of the cost.
        due = total < 256 or total % 16 == 0 or self.p99_tokens is None or tokens > self.p99_tokens
        return LengthSketch(counts, total, _quantile(counts, total, 0.99) if due else self.p99_tokens)

    def quantile(self, fraction: float) -> int | None:
        """The length in tokens that `fraction` (0..1) of the answers do not exceed."""
        return _quantile(self.counts, self.total, fraction) if self.total else None


def bucket(tokens: int) -> int:
    """The place of a length: the least i with `GROWTH ** i >= tokens`."""
    return 0 if tokens <= 1 else min(BUCKETS - 1, ceil(log(tokens) / _LOG_GROWTH - 1e-9))


_UPPER: Final = tuple(int(GROWTH**place) for place in range(BUCKETS))


def _quantile(counts: tuple[int, ...], total: int, fraction: float) -> int:
    # From the top, where high quantiles lie.
    above = total - max(1, ceil(fraction * total))
    for place in range(BUCKETS - 1, -1, -1):
        above -= counts[place]
        if above < 0:
            return _UPPER[place]
    return _UPPER[0]
