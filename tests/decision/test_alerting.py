"""Alert rules: each fires beyond its limit and for its subject, and brings a remedy and a way back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadwise.decision import burn
from loadwise.decision.alert_facts import Health, Rollback, Severity
from loadwise.decision.alert_rules import RULES
from loadwise.decision.alerting import conditions
from loadwise.decision.burn import Share
from loadwise.decision.facts import Policy, StrategyName
from loadwise.decision.grading import recommendations
from loadwise.decision.improvement import Improvement
from loadwise.decision.silence import Silence

POLICY = Policy()
PAGES = {
    "objectives_burning",
    "silent_member_serving",
    "loop_stale",
    "sensors_stale",
    "configuration_rolled_back",
    "rollout_taken_back",
}


def gained(value: float, high: float, without: float = 0.5) -> Improvement:
    return Improvement(
        value=value,
        low=value - 0.1,
        high=high,
        optimised_fraction=without + value,
        unoptimised_fraction=without,
        if_suspended_within=value,
        strata=12,
        requests=800,
    )


def windows(missed: float, judged: int = 1000) -> dict[str, dict[float, Share]]:
    """One route that misses the same share in every window."""
    return {"auto": {span: Share(judged, round(missed * judged)) for span in burn.WINDOWS_S}}


def silent(seconds: float, *, isolated: bool = False) -> Health:
    return Health(silences=[Silence(member_id="fast", seconds=seconds, isolated=isolated)])


def silent_replica(seconds: float, *, isolated: bool = False, serving: int = 2) -> Health:
    asked = {"member_id": "fast", "replica_id": "fast/1", "isolated": isolated, "serving": serving}
    return Health(silences=[Silence(seconds=seconds, **asked)])


def rolled_back(seconds_ago: float) -> Health:
    return Health(rollback=Rollback(from_version=4, to_version=3, seconds_ago=seconds_ago))


@pytest.mark.parametrize(
    ("health", "fires"),
    [
        (Health(), []),
        (Health(error_fraction=0.05, avg_latency_ms=500.0, improvement=gained(0.2, 0.3)), []),
        (Health(error_fraction=0.051), ["high_error_rate"]),
        (Health(avg_latency_ms=500.1), ["excessive_latency"]),
        (Health(improvement=gained(0.01, 0.09)), ["low_optimization_effectiveness"]),
        (Health(improvement=gained(0.01, 0.10)), []),
        (Health(improvement=gained(0.01, 0.05, without=0.95)), []),
        (Health(members_out=("fast",)), ["ensemble_degradation"]),
        (Health(failed_builds={"m": "g++"}), ["compilation_failure"]),
        (Health(objectives=windows(0.2)), ["objectives_burning", "objectives_spent"]),
        (Health(objectives=windows(0.03)), ["objectives_spent"]),
        (Health(objectives=windows(0.005)), []),
        (Health(objectives=windows(1.0, judged=burn.REQUESTS_NEEDED - 1)), []),
        (Health(objectives=windows(0.2, judged=20)), []),
        (Health(objectives=windows(0.25, judged=20)), ["objectives_burning"]),
        (Health(queues={"local": 1.0, "eu": 0.2}), ["queue_saturation"]),
        (Health(reading_ages_s={"eu/0": 31.0}), ["stale_engine_metrics"]),
        (Health(reading_ages_s={"eu/0": 61.0}, pool_ages_s={"eu": 2.0}), ["stale_engine_metrics"]),
        (Health(pool_ages_s={"eu": 61.0}), ["sensors_stale"]),
        (Health(loop_age_s=61.0), ["loop_stale"]),
        (Health(loop_age_s=None), []),
        (silent(14.0), []),
        (silent(16.0), ["silent_member"]),
        (silent(31.0), ["silent_member", "silent_member_serving"]),
        (silent(31.0, isolated=True), ["silent_member"]),
        (silent_replica(16.0), ["silent_replica"]),
        (silent_replica(60.0, isolated=True, serving=1), ["silent_replica"]),
        (silent_replica(60.0, serving=1), ["silent_member", "silent_member_serving"]),
        (silent_replica(60.0, isolated=True, serving=0), ["silent_member"]),
        (Health(replicas_out=("fast/1",)), ["ensemble_degradation"]),
        (rolled_back(30.0), ["configuration_rolled_back"]),
        (rolled_back(1000.0), []),
        (Health(rollouts_back_s={"auto": 30.0, "other": 1000.0}), ["rollout_taken_back"]),
        (Health(faults_ago_s={"decision": 9.0, "observe": 1.0, "builds": 400.0}), ["optimizer_fault"]),
        (Health(journal_lost_ago_s=9.0), ["journal_losing"]),
        (Health(journal_lost_ago_s=400.0), []),
        (Health(monitoring_age_s=1.0), ["monitoring_failed"]),
    ],
)
def test_alerts_fire_only_beyond_their_limits(health: Health, fires: list[str]) -> None:
    assert [condition.name for condition in conditions(POLICY, health)] == fires


EVERYTHING = Health(
    error_fraction=1.0,
    avg_latency_ms=9000.0,
    improvement=gained(0.0, 0.01),
    members=1,
    members_out=("a",),
    failed_builds={"m": "slow"},
    objectives=windows(0.9),
    queues={"local": 1.0},
    reading_ages_s={"a/0": 90.0},
    pool_ages_s={"local": 90.0},
    loop_age_s=90.0,
    silences=[
        Silence(member_id="a", seconds=90.0, isolated=False),
        Silence(member_id="b", replica_id="b/1", seconds=90.0, serving=2),
    ],
    rollback=Rollback(from_version=4, to_version=3, seconds_ago=1.0),
    rollouts_back_s={"auto": 1.0},
    faults_ago_s={"decision": 1.0},
    journal_lost_ago_s=1.0,
    monitoring_age_s=12.0,
)


def test_every_rule_can_fire_and_says_what_to_do_and_how_to_undo() -> None:
    found = conditions(POLICY, EVERYTHING)
    assert [condition.name for condition in found] == [rule.name for rule in RULES]
    for condition in found:
        assert condition.remedy
        assert condition.undo
        assert condition.limit is not None
        assert "{" not in condition.message + condition.remedy


def test_each_condition_brings_its_remedy_as_advice() -> None:
    advice = recommendations(POLICY, EVERYTHING, StrategyName.PERFORMANCE, 0.5)
    assert len(advice) == len(RULES) + 2


def test_only_what_cannot_wait_is_a_page() -> None:
    assert {rule.name for rule in RULES if rule.severity is Severity.PAGE} == PAGES


def test_an_alert_that_holds_goes_on_a_little_below_its_limit() -> None:
    health = Health(avg_latency_ms=460.0)
    assert conditions(POLICY, health) == ()
    (kept,) = conditions(POLICY, health, {("excessive_latency", "")})
    assert kept.limit == 500.0
    assert conditions(POLICY, Health(avg_latency_ms=449.0), {("excessive_latency", "")}) == ()


def test_holding_concerns_one_subject_only() -> None:
    health = Health(queues={"eu": 0.9, "us": 0.9})
    found = conditions(POLICY, health, {("queue_saturation", "eu")})
    assert [condition.subject for condition in found] == ["eu"]


def test_burning_needs_the_short_window_too() -> None:
    over = {"auto": {**windows(0.5)["auto"], 300.0: Share(1000, 0), 1800.0: Share(1000, 0)}}
    assert "objectives_burning" not in {c.name for c in conditions(POLICY, Health(objectives=over))}


@given(st.integers(0, 10_000), st.integers(0, 10_000), st.floats(0.5, 0.999))
def test_a_burn_of_one_spends_exactly_the_budget(judged: int, missed: int, target: float) -> None:
    share = Share(judged, min(missed, judged))
    value = burn.rate(share, target)
    if judged == 0:
        assert value is None
    else:
        assert value == pytest.approx(share.missed / judged / (1 - target))
