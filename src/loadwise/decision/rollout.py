"""How optimisation reaches traffic: told but not done, then a growing share, and back at once on harm.

A subject is a route, or a key on a route. Each has a state of its own; the rules below are tried in order,
and the first that holds says what happens and why.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final

from loadwise.decision.comparison import Compared
from loadwise.decision.improvement import Improvement

# Answers of one step below which its error share says nothing.
ANSWERS_NEEDED: Final = 20


class Mode(StrEnum):
    """How far optimisation may go."""

    FULL = "full"
    ADVISORY = "advisory"
    RAMP = "ramp"


class RolloutReason(StrEnum):
    """Why the share is what it is."""

    FULL = "full"
    ADVISORY = "advisory"
    STARTED = "started"
    SETTLING = "settling"
    TOO_FEW_REQUESTS = "too_few_requests"
    ERRORS_NOT_YET_KNOWN = "errors_not_yet_known"
    EVIDENCE_HOLDS = "evidence_holds"
    COMPLETE = "complete"
    ERRORS_BURNING = "errors_burning"
    MORE_ERRORS = "more_errors"
    LOWER_SCORES = "lower_scores"
    FEWER_WITHIN_OBJECTIVES = "fewer_within_objectives"
    TAKEN_BACK = "taken_back"


HARMS: Final = frozenset(
    {
        RolloutReason.ERRORS_BURNING,
        RolloutReason.MORE_ERRORS,
        RolloutReason.LOWER_SCORES,
        RolloutReason.FEWER_WITHIN_OBJECTIVES,
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Ascending shares (0..1), the last one 1; each holds for `step_s` seconds and `requests` at least."""

    mode: Mode = Mode.FULL
    steps: Sequence[float] = (0.01, 0.05, 0.25, 0.5, 1.0)
    step_s: float = 3600.0
    requests: int = 200
    # Share of failures (0..1) that may be.
    error_budget: float = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """The share of a subject's traffic that is optimised now, since when (monotonic seconds), and why.

    Once taken back it stays so, until the operator begins anew.
    """

    share: float
    since_s: float
    reason: RolloutReason
    # What took it back; None while nothing did.
    harm: RolloutReason | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What was seen since the step began: answers with optimisation and without, and what differs.

    `gain` is that of the whole server's blocks; what is not known yet is None.
    """

    answers: int = 0
    errors: int = 0
    answers_without: int = 0
    errors_without: int = 0
    error_share: Compared | None = None
    # Of this step's requests and, since scores come late, of each earlier step's.
    scores: Sequence[Compared] = ()
    gain: Improvement | None = None


def begun(plan: Plan, now_s: float) -> Rollout:
    """Where a subject starts."""
    if plan.mode is Mode.RAMP:
        return Rollout(share=plan.steps[0], since_s=now_s, reason=RolloutReason.STARTED)
    if plan.mode is Mode.ADVISORY:
        return Rollout(share=0.0, since_s=now_s, reason=RolloutReason.ADVISORY)
    return Rollout(share=1.0, since_s=now_s, reason=RolloutReason.FULL)


def advanced(plan: Plan, rollout: Rollout, evidence: Evidence, now_s: float) -> Rollout:
    """The next state; only a plan that ramps moves."""
    if plan.mode is not Mode.RAMP:
        return rollout
    if rollout.harm is not None:
        return replace(rollout, reason=RolloutReason.TAKEN_BACK)
    reason = next(reason for reason, holds in RULES if holds(plan, rollout, evidence, now_s))
    if reason in HARMS:
        return Rollout(share=0.0, since_s=now_s, reason=reason, harm=reason)
    if reason is RolloutReason.EVIDENCE_HOLDS:
        following = next(step for step in plan.steps if step > rollout.share)
        return Rollout(share=following, since_s=now_s, reason=reason)
    return replace(rollout, reason=reason)


Holds = Callable[[Plan, Rollout, Evidence, float], bool]


def _errors_burning(plan: Plan, _: Rollout, seen: Evidence, __: float) -> bool:
    """Too many failures with optimisation, and fewer without it: fast, before intervals can say."""
    if min(seen.answers, seen.answers_without) < ANSWERS_NEEDED:
        return False
    share, without = seen.errors / seen.answers, seen.errors_without / seen.answers_without
    return share > plan.error_budget and share > 2.0 * without


def _more_errors(_: Plan, __: Rollout, seen: Evidence, ___: float) -> bool:
    difference = None if seen.error_share is None else seen.error_share.difference
    return difference is not None and difference.low > 0.0


def _lower_scores(_: Plan, __: Rollout, seen: Evidence, ___: float) -> bool:
    found = [scores.difference for scores in seen.scores]
    return any(difference is not None and difference.high < 0.0 for difference in found)


def _fewer_within(_: Plan, __: Rollout, seen: Evidence, ___: float) -> bool:
    return seen.gain is not None and seen.gain.high < 0.0


def _complete(_: Plan, rollout: Rollout, __: Evidence, ___: float) -> bool:
    return rollout.share >= 1.0


def _settling(plan: Plan, rollout: Rollout, _: Evidence, now_s: float) -> bool:
    return now_s - rollout.since_s < plan.step_s


def _too_few(plan: Plan, _: Rollout, seen: Evidence, __: float) -> bool:
    return seen.answers < plan.requests


def _errors_unknown(plan: Plan, _: Rollout, seen: Evidence, __: float) -> bool:
    """The interval does not yet exclude that optimisation adds failures beyond the budget."""
    difference = None if seen.error_share is None else seen.error_share.difference
    return difference is None or difference.high > plan.error_budget


RULES: Final[tuple[tuple[RolloutReason, Holds], ...]] = (
    (RolloutReason.ERRORS_BURNING, _errors_burning),
    (RolloutReason.MORE_ERRORS, _more_errors),
    (RolloutReason.LOWER_SCORES, _lower_scores),
    (RolloutReason.FEWER_WITHIN_OBJECTIVES, _fewer_within),
    (RolloutReason.COMPLETE, _complete),
    (RolloutReason.SETTLING, _settling),
    (RolloutReason.TOO_FEW_REQUESTS, _too_few),
    (RolloutReason.ERRORS_NOT_YET_KNOWN, _errors_unknown),
    (RolloutReason.EVIDENCE_HOLDS, lambda *_: True),
)
