"""Feedback moves quality: down at once, up on evidence, and never by one tenant's will."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from loadwise.decision.feedback import (
    HALF_LIFE_S,
    PRIOR_WEIGHT,
    SCORES_TO_RAISE,
    TENANT_SHARE,
    Evidence,
    Tally,
    heard,
    influence_cap,
    quality,
)

scores = st.floats(0.0, 1.0)
tenants = st.sampled_from([f"tenant-{number}" for number in range(15)])
said = st.lists(st.tuples(tenants, scores), max_size=200)


def evidence_of(*spoken: tuple[str, float], now_s: float = 0.0) -> Evidence:
    evidence: Evidence = {}
    for tenant, score in spoken:
        evidence = heard(evidence, tenant, score, now_s)
    return evidence


def test_one_bad_score_lowers_trust_at_once() -> None:
    believed = quality(0.9, evidence_of(("a", 0.0)), 0.0)
    assert believed is not None
    assert 0.8 < believed < 0.9


def test_praise_raises_trust_only_after_many_scores() -> None:
    few = [("a", 1.0)] * (int(SCORES_TO_RAISE) - 1)
    assert quality(0.5, evidence_of(*few), 0.0) == 0.5
    many = [(f"t{number % 12}", 1.0) for number in range(240)]
    believed = quality(0.5, evidence_of(*many), 0.0)
    assert believed is not None
    assert believed > 0.8


def test_praise_that_contradicts_itself_raises_nothing() -> None:
    mixed = [(f"t{number % 12}", float(number % 2)) for number in range(240)]
    assert quality(0.5, evidence_of(*mixed), 0.0) == 0.5


def test_a_hostile_tenant_moves_quality_by_a_tenth_at_most() -> None:
    hostile = evidence_of(*[("bad", 0.0)] * 5000)
    believed = quality(0.9, hostile, 0.0)
    assert believed is not None
    assert believed >= 0.9 * (1.0 - TENANT_SHARE) - 1e-9


@given(said, st.lists(scores, min_size=1, max_size=400), scores)
def test_no_tenant_moves_quality_down_by_more_than_its_share(
    others: list[tuple[str, float]], own: list[float], prior: float
) -> None:
    evidence = evidence_of(*others, *(("hostile", score) for score in own))
    weights = [tally.weight for tally in evidence.values()]
    cap = influence_cap(weights)
    total = PRIOR_WEIGHT + sum(min(weight, cap) for weight in weights)
    assert min(evidence["hostile"].weight, cap) / total <= TENANT_SHARE + 1e-9
    believed = quality(prior, evidence, 0.0)
    assert believed is not None
    assert 0.0 <= believed <= 1.0


@given(st.lists(st.floats(0.01, 1e6), min_size=1, max_size=30))
def test_the_cap_holds_for_any_crowd(weights: list[float]) -> None:
    cap = influence_cap(weights)
    total = PRIOR_WEIGHT + sum(min(weight, cap) for weight in weights)
    assert max(min(weight, cap) for weight in weights) <= TENANT_SHARE * total * (1 + 1e-9)


def test_scores_fade_until_the_operators_quality_is_believed_again() -> None:
    evidence = evidence_of(*[("a", 0.0)] * 10)
    soon, late = quality(0.9, evidence, 0.0), quality(0.9, evidence, 20 * HALF_LIFE_S)
    assert soon is not None
    assert late is not None
    assert soon < 0.85
    assert 0.899 < late < 0.9


def test_an_unknown_quality_stays_unknown_until_many_tenants_tell_it() -> None:
    assert quality(None, evidence_of(*[("a", 0.8)] * 1000), 0.0) is None
    many = [(f"t{number % 15}", 0.8) for number in range(600)]
    believed = quality(None, evidence_of(*many), 0.0)
    assert believed is not None
    assert 0.7 < believed <= 0.8


def test_nothing_heard_leaves_the_prior() -> None:
    assert quality(0.7, {}, 0.0) == 0.7
    assert quality(None, {}, 0.0) is None
    assert quality(0.7, {"a": Tally()}, 0.0) == 0.7


def test_a_clock_that_goes_back_makes_no_scores_heavier() -> None:
    evidence = heard(evidence_of(("a", 0.0), now_s=1e6), "a", 0.0, 0.0)
    assert evidence["a"].weight == 2.0
