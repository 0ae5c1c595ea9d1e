"""Last known good: applied configurations, what was measured under each, and when to go back.

A configuration is good when enough requests under it were within objectives. A later one regresses when,
at the same level of load, significantly fewer are. Then the last good one returns, once per change; an
operator who applies the other one again has pinned it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from math import sqrt
from typing import Final

from loadwise.decision.facts import Policy
from loadwise.decision.outcome import load_level

REQUESTS_NEEDED: Final = 50
GOOD_FRACTION: Final = 0.95
# A regression is at least this large, and this many standard errors.
LOST_FRACTION: Final = 0.05
STANDARD_ERRORS: Final = 3.0
KEPT_VERSIONS: Final = 32

Levels = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]
NOTHING: Final[Levels] = ((0, 0), (0, 0), (0, 0))


class RevertReason(StrEnum):
    """Why the last good configuration returns, or does not."""

    REGRESSION = "regression"
    NO_REGRESSION = "no_regression"
    NOT_ENOUGH = "not_enough_evidence"
    PINNED = "pinned"
    ALREADY_REVERTED = "already_reverted"
    NO_GOOD_VERSION = "no_good_version"


@dataclass(frozen=True, slots=True, kw_only=True)
class Applied:
    """One applied configuration; `levels` counts (requests, within objectives) at low, middle, high load."""

    version: int
    # Tells configurations apart whatever their version, for example a digest.
    fingerprint: str
    applied_s: float
    pinned: bool = False
    # Put back by us, so that it is not taken back again.
    reverted: bool = False
    levels: Levels = NOTHING

    @property
    def good(self) -> bool:
        """Whether it served within its objectives, on enough requests."""
        requests = sum(seen for seen, _ in self.levels)
        within = sum(met for _, met in self.levels)
        return requests >= REQUESTS_NEEDED and within >= GOOD_FRACTION * requests


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """Applied configurations, the present one last, and fingerprints that were taken back once."""

    applied: tuple[Applied, ...] = ()
    rejected: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """The version to put back (None: stay), why, and the shares that were compared."""

    revert_to: int | None
    reason: RevertReason
    now_fraction: float | None = None
    good_fraction: float | None = None


def applied(
    history: History, version: int, fingerprint: str, now_s: float, *, reverting: bool = False
) -> History:
    """The history after a configuration was applied, by an operator or (`reverting`) by a verdict."""
    rejected = history.rejected
    if reverting and history.applied:
        rejected |= {history.applied[-1].fingerprint}
    entry = Applied(
        version=version,
        fingerprint=fingerprint,
        applied_s=now_s,
        pinned=not reverting and fingerprint in rejected,
        reverted=reverting,
    )
    return History(applied=(*history.applied, entry)[-KEPT_VERSIONS:], rejected=rejected)


def counted(policy: Policy, history: History, load_score: float | None, *, within: bool) -> History:
    """The history with one more request served under the present configuration."""
    if not history.applied:
        return history
    present = history.applied[-1]
    at = 1 if load_score is None else load_level(policy, load_score)
    levels = list(present.levels)
    seen, met = levels[at]
    levels[at] = (seen + 1, met + within)
    low, middle, high = levels
    counted_too = replace(present, levels=(low, middle, high))
    return History(applied=(*history.applied[:-1], counted_too), rejected=history.rejected)


def judge(history: History) -> Verdict:
    """Whether the present configuration is so much worse than the last good one that it must go back."""
    if len(history.applied) < 2:
        return Verdict(revert_to=None, reason=RevertReason.NO_GOOD_VERSION)
    present = history.applied[-1]
    if present.pinned:
        return Verdict(revert_to=None, reason=RevertReason.PINNED)
    if present.reverted:
        return Verdict(revert_to=None, reason=RevertReason.ALREADY_REVERTED)
    for earlier in reversed(history.applied[:-1]):
        if earlier.good and earlier.fingerprint != present.fingerprint:
            return _compared(present, earlier)
    return Verdict(revert_to=None, reason=RevertReason.NO_GOOD_VERSION)


def _compared(present: Applied, good: Applied) -> Verdict:
    """The verdict at the level of load where the two differ most, of those with enough requests."""
    worst: Verdict | None = None
    for (seen, met), (good_seen, good_met) in zip(present.levels, good.levels, strict=True):
        if min(seen, good_seen) < REQUESTS_NEEDED:
            continue
        now, before = met / seen, good_met / good_seen
        share = (met + good_met + 1.0) / (seen + good_seen + 2.0)
        error = sqrt(share * (1.0 - share) * (1.0 / seen + 1.0 / good_seen))
        lost = before - now
        if lost >= LOST_FRACTION and lost >= STANDARD_ERRORS * error:
            return Verdict(
                revert_to=good.version, reason=RevertReason.REGRESSION, now_fraction=now, good_fraction=before
            )
        worst = Verdict(
            revert_to=None, reason=RevertReason.NO_REGRESSION, now_fraction=now, good_fraction=before
        )
    return worst or Verdict(revert_to=None, reason=RevertReason.NOT_ENOUGH)
