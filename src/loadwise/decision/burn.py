"""How fast an error budget burns, over several windows at once (Google SRE workbook, chapter 5, table 5-8).

A burn rate of 1 spends exactly the budget (1 - target) over its period. An alert needs both of a pair:
the long window says that it matters, the short one that it still goes on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple


class Share(NamedTuple):
    """Requests of a window that could be judged, and those of them that missed an objective."""

    judged: int
    missed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """Two windows in seconds, the burn rate that both must pass, and the misses that the long one must have.

    With few requests two late ones are a high rate. So many misses at the first two rates chance alone makes,
    of a budget that is kept, once in ten thousand long windows.
    """

    long_s: float
    short_s: float
    factor: float
    misses: int


FAST: Final = Pair(long_s=3600.0, short_s=300.0, factor=14.4, misses=5)
SLOW: Final = Pair(long_s=21_600.0, short_s=1800.0, factor=6.0, misses=8)
SPENT: Final = Pair(long_s=259_200.0, short_s=21_600.0, factor=1.0, misses=10)
PAIRS: Final = (FAST, SLOW, SPENT)
WINDOWS_S: Final = tuple(sorted({span for pair in PAIRS for span in (pair.long_s, pair.short_s)}))
# Fewer requests than this in the short window say nothing: one of two would be half of all.
REQUESTS_NEEDED: Final = 20


def rate(share: Share, target: float) -> float | None:
    """How many times faster than allowed the budget of a target (0..1) burns; None without requests."""
    if not share.judged or target >= 1.0:
        return None
    return share.missed / share.judged / (1.0 - target)


def passed(windows: Mapping[float, Share], pair: Pair, target: float, factor: float) -> float | None:
    """The pair's lower burn rate where both windows pass `factor` by more than chance, else None."""
    short, long = windows.get(pair.short_s), windows.get(pair.long_s)
    if short is None or long is None:
        return None
    if short.judged < REQUESTS_NEEDED or long.missed < pair.misses:
        return None
    rates = [rate(short, target), rate(long, target)]
    lower = min((value for value in rates if value is not None), default=None)
    return lower if lower is not None and None not in rates and lower > factor else None
