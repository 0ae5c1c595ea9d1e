"""When a measurement must give way: an unoptimised block ends at once where it would do harm."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from loadwise.decision.burn import FAST, SLOW, Pair, Share, passed, rate

# Answers below which an error share says nothing.
ANSWERS_NEEDED: Final = 20
# A block ends at this part of the burn rate that is a page: what was sent already still ends.
EARLY: Final = 0.8
# The pairs of windows that the alert `objectives_burning` is made of.
PAGED: Final = (FAST, SLOW)


class SuspendReason(StrEnum):
    """Why an unoptimised block was cut short."""

    OVERLOADED = "overloaded"
    REFUSING = "refusing"
    ERRORS = "error_budget_burning"
    LATE = "objectives_burning"


@dataclass(frozen=True, slots=True, kw_only=True)
class Burning:
    """One route's requests in each of `burn.WINDOWS_S`: all, and those of unoptimised blocks among them."""

    everyone: Mapping[float, Share]
    unoptimised: Mapping[float, Share]
    # Requests of unoptimised blocks that have not ended.
    open: int = 0


def suspension(
    *,
    load_score: float | None,
    overloaded_at: float,
    errors: int,
    answers: int,
    error_budget: float,
    routes: Iterable[Burning] = (),
    target: float = 1.0,
) -> SuspendReason | None:
    """Why the block must end, if it must.

    `load_score` (0..1) is the most loaded pool's; `errors` of `answers` of the block were failures, and
    `error_budget` (0..1) is the share of failures that may be. Of `routes` the share `target` (0..1) should
    be within objectives.
    """
    if load_score is not None and load_score >= overloaded_at:
        return SuspendReason.OVERLOADED
    if answers >= ANSWERS_NEEDED and errors > error_budget * answers:
        return SuspendReason.ERRORS
    if any(would_page(route, target) for route in routes):
        return SuspendReason.LATE
    return None


def would_page(route: Burning, target: float) -> bool:
    """Whether the budget is about to burn as fast as a page tells of, and would not without the experiment.

    Requests that are open may all be late: nobody knows before they end, and then it is too late.
    """
    return any(_burns(route, pair, target) for pair in PAGED) and not any(
        _burns_anyway(route, pair, target) for pair in PAGED
    )


def _burns(route: Burning, pair: Pair, target: float) -> bool:
    windows = {span: _with_open(route, span) for span in (pair.short_s, pair.long_s)}
    return passed(windows, pair, target, EARLY * pair.factor) is not None


def _burns_anyway(route: Burning, pair: Pair, target: float) -> bool:
    """Optimised requests alone are a page, of either pair, which ending the block would spare nobody."""
    every, alone = route.everyone[pair.long_s], route.unoptimised[pair.long_s]
    rest = Share(every.judged - alone.judged, every.missed - alone.missed)
    return rest.missed >= pair.misses and (rate(rest, target) or 0.0) > pair.factor


def _with_open(route: Burning, span_s: float) -> Share:
    found = route.everyone[span_s]
    return Share(found.judged + route.open, found.missed + route.open)
