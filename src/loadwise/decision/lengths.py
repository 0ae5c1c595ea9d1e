"""How long answers are that end by themselves: a quantile sketch of bounded size.

Buckets grow by 10 %, so a quantile is never below the truth and at most 10 % above it (the idea of
DDSketch, Masson et al. 2019, section 2).
"""

from __future__ import annotations

from math import ceil, log
from typing import Final, NamedTuple

from loadwise.decision.quick import new

GROWTH: Final = 1.1
# Rows of buckets, so that a new count copies one row. They reach 1.1 ** 143, about 830,000 tokens; longer
# answers count in the last bucket.
ROW: Final = 12
ROWS: Final = 12
BUCKETS: Final = ROW * ROWS
# From here on all counts are halved, so that old answers fade.
FULL: Final = 20_000
_LOG_GROWTH: Final = log(GROWTH)


class LengthSketch(NamedTuple):
    """Counts of answer lengths in tokens; `p99_tokens` is None before the first."""

    rows: tuple[tuple[int, ...], ...] = ()
    total: int = 0
    p99_tokens: int | None = None

    def add(self, tokens: int) -> LengthSketch:
        """The sketch with one more answer of `tokens` (below 1 counts as 1)."""
        at, place = divmod(bucket(tokens), ROW)
        rows = self.rows or _EMPTY
        row, table = list(rows[at]), list(rows)
        row[place] += 1
        table[at] = tuple(row)
        rows = tuple(table)
        total = self.total + 1
        if total >= FULL:
            rows = tuple([tuple([count // 2 for count in row]) for row in rows])
            total = sum(map(sum, rows))
        # The far tail moves slowly: reading it off every time would be most of the cost.
        due = total < 64 or total % 16 == 0 or self.p99_tokens is None or tokens > self.p99_tokens
        return new(LengthSketch, (rows, total, _quantile(rows, total, 0.99) if due else self.p99_tokens))

    def quantile(self, fraction: float) -> int | None:
        """The length in tokens that `fraction` (0..1) of the answers do not exceed."""
        return _quantile(self.rows, self.total, fraction) if self.total else None


def _bucket(tokens: int) -> int:
    return 0 if tokens <= 1 else min(BUCKETS - 1, ceil(log(tokens) / _LOG_GROWTH - 1e-9))


# Of the usual lengths, so that an answer looks its place up.
_PLACES: Final = tuple(map(_bucket, range(8192)))


def bucket(tokens: int) -> int:
    """The place of a length: the least i with `GROWTH ** i >= tokens`."""
    return _PLACES[tokens] if 0 <= tokens < len(_PLACES) else _bucket(tokens)


_UPPER: Final = tuple(int(GROWTH**place) for place in range(BUCKETS))
_EMPTY: Final = ((0,) * ROW,) * ROWS


def _quantile(rows: tuple[tuple[int, ...], ...], total: int, fraction: float) -> int:
    # From the top, where high quantiles lie.
    above = total - max(1, ceil(fraction * total))
    for at in range(ROWS - 1, -1, -1):
        row = rows[at]
        counted = sum(row)
        if counted <= above:
            above -= counted
            continue
        for place in range(ROW - 1, -1, -1):
            above -= row[place]
            if above < 0:
                return _UPPER[at * ROW + place]
    return _UPPER[0]
