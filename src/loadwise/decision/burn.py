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
    """Two windows in seconds, and the burn rate that both must pass."""

    long_s: float
    short_s: float
    factor: float


FAST: Final = Pair(long_s=3600.0, short_s=300.0, factor=14.4)
SLOW: Final = Pair(long_s=21_600.0, short_s=1800.0, factor=6.0)
SPENT: Final = Pair(long_s=259_200.0, short_s=21_600.0, factor=1.0)
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
    """The pair's lower burn rate where both windows pass `factor`, else None."""
    short, long = windows.get(pair.short_s), windows.get(pair.long_s)
    if short is None or long is None or short.judged < REQUESTS_NEEDED:
        return None
    rates = [rate(short, target), rate(long, target)]
    lower = min((value for value in rates if value is not None), default=None)
    return lower if lower is not None and None not in rates and lower > factor else None
