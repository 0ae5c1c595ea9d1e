"""Rollout: shares grow while the evidence holds, and go back at once when it does not."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadwise.decision.comparison import Compared
from loadwise.decision.improvement import Improvement
from loadwise.decision.intervals import Interval
from loadwise.decision.rollout import HARMS, Evidence, Mode, Plan, Rollout, RolloutReason, advanced, begun

PLAN = Plan(mode=Mode.RAMP, steps=(0.1, 0.5, 1.0), step_s=60.0, requests=100, error_budget=0.05)


def differs(low: float, high: float) -> Compared:
    return Compared(
        optimised=0.5,
        unoptimised=0.5,
        requests_optimised=500,
        requests_unoptimised=500,
        difference=Interval(value=(low + high) / 2, low=low, high=high),
    )


def gain(low: float, high: float) -> Improvement:
    return Improvement(
        value=(low + high) / 2, low=low, high=high, optimised_fraction=0.5, unoptimised_fraction=0.5,
        if_suspended_within=0.0, strata=20, requests=1000,
    )  # fmt: skip


GOOD = Evidence(answers=500, answers_without=500, error_share=differs(-0.02, 0.02))


def moved(evidence: Evidence, after_s: float = 61.0, rollout: Rollout | None = None) -> Rollout:
    return advanced(PLAN, rollout or begun(PLAN, 0.0), evidence, after_s)


def test_the_share_grows_step_by_step_while_the_evidence_holds() -> None:
    rollout, shares = begun(PLAN, 0.0), []
    for turn in range(1, 5):
        shares.append(rollout.share)
        rollout = advanced(PLAN, rollout, GOOD, 100.0 * turn)
    assert shares == [0.1, 0.5, 1.0, 1.0]
    assert rollout.reason is RolloutReason.COMPLETE


@pytest.mark.parametrize(
    ("evidence", "after_s", "reason"),
    [
        (GOOD, 59.0, RolloutReason.SETTLING),
        (replace(GOOD, answers=99), 61.0, RolloutReason.TOO_FEW_REQUESTS),
        (replace(GOOD, error_share=None), 61.0, RolloutReason.ERRORS_NOT_YET_KNOWN),
        (replace(GOOD, error_share=differs(-0.1, 0.06)), 61.0, RolloutReason.ERRORS_NOT_YET_KNOWN),
        (GOOD, 61.0, RolloutReason.EVIDENCE_HOLDS),
    ],
)
def test_it_waits_for_time_answers_and_the_errors_interval(
    evidence: Evidence, after_s: float, reason: RolloutReason
) -> None:
    found = moved(evidence, after_s)
    assert found.reason is reason
    assert found.share == (0.5 if reason is RolloutReason.EVIDENCE_HOLDS else 0.1)


@pytest.mark.parametrize(
    ("evidence", "reason"),
    [
        (
            Evidence(answers=20, errors=5, answers_without=200, errors_without=2),
            RolloutReason.ERRORS_BURNING,
        ),
        (replace(GOOD, error_share=differs(0.01, 0.05)), RolloutReason.MORE_ERRORS),
        (replace(GOOD, scores=[differs(-0.2, -0.1)]), RolloutReason.LOWER_SCORES),
        (replace(GOOD, scores=[differs(-0.1, 0.1), differs(-0.2, -0.1)]), RolloutReason.LOWER_SCORES),
        (replace(GOOD, gain=gain(-0.2, -0.1)), RolloutReason.FEWER_WITHIN_OBJECTIVES),
    ],
)
@pytest.mark.parametrize("share", [0.1, 0.5, 1.0])
def test_harm_takes_it_back_at_once_and_it_stays_back(
    evidence: Evidence, reason: RolloutReason, share: float
) -> None:
    before = Rollout(share=share, since_s=0.0, reason=RolloutReason.SETTLING)
    found = moved(evidence, 1.0, before)
    assert (found.share, found.harm, found.since_s) == (0.0, reason, 1.0)
    later = advanced(PLAN, found, GOOD, 10_000.0)
    assert (later.share, later.harm, later.reason) == (0.0, reason, RolloutReason.TAKEN_BACK)


@pytest.mark.parametrize(
    "evidence",
    [
        replace(GOOD, gain=gain(-0.2, 0.1), scores=[differs(-0.2, 0.1)]),
        Evidence(answers=500, errors=100, answers_without=500, errors_without=100),
        Evidence(answers=19, errors=19, answers_without=500),
        Evidence(answers=500, errors=500, answers_without=0),
    ],
)
def test_what_may_be_chance_or_hits_everybody_takes_nothing_back(evidence: Evidence) -> None:
    assert moved(evidence).harm is None


@pytest.mark.parametrize(("mode", "share"), [(Mode.FULL, 1.0), (Mode.ADVISORY, 0.0)])
def test_only_a_ramp_moves(mode: Mode, share: float) -> None:
    plan = replace(PLAN, mode=mode)
    harmed = replace(GOOD, error_share=differs(0.3, 0.5))
    assert begun(plan, 0.0).share == share
    assert advanced(plan, begun(plan, 0.0), harmed, 1e6) == begun(plan, 0.0)


EVIDENCE = st.builds(
    Evidence,
    answers=st.integers(0, 1000),
    errors=st.integers(0, 50),
    answers_without=st.integers(0, 1000),
    errors_without=st.integers(0, 50),
    error_share=st.none() | st.builds(differs, st.floats(-0.5, 0.0), st.floats(0.0, 0.5)),
    scores=st.lists(st.builds(differs, st.floats(-0.5, 0.0), st.floats(-0.2, 0.5)), max_size=3),
    gain=st.none() | st.builds(gain, st.floats(-0.5, 0.0), st.floats(-0.2, 0.5)),
)


@given(turns=st.lists(st.tuples(EVIDENCE, st.floats(0.0, 300.0)), max_size=12))
def test_the_share_never_skips_a_step_and_falls_only_to_nothing_on_harm(
    turns: list[tuple[Evidence, float]],
) -> None:
    rollout, now_s = begun(PLAN, 0.0), 0.0
    for evidence, passed_s in turns:
        now_s += passed_s
        after = advanced(PLAN, rollout, evidence, now_s)
        if after.share > rollout.share:
            steps = (0.0, *PLAN.steps)
            assert steps.index(after.share) == steps.index(rollout.share) + 1
            assert now_s - rollout.since_s >= PLAN.step_s
            assert rollout.harm is None
        if after.share < rollout.share:
            assert after.share == 0.0
            assert after.reason in HARMS
        rollout = after
