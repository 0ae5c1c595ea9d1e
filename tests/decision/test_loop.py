"""Admission, grades, alerts, last known good, and the step that joins them."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadwise.decision.admission import AdmissionReason, PoolLimit, admit
from loadwise.decision.alert_facts import Health
from loadwise.decision.beliefs import Health as MemberHealth
from loadwise.decision.facts import EngineReading, HostReading, MemberPressure, Policy, StrategyName
from loadwise.decision.grading import grade, recommendations
from loadwise.decision.lastgood import History, RevertReason, applied, counted, judge
from loadwise.decision.outcome import learn
from loadwise.decision.step import Observation, State, step

from .build import POLICY, failed, fresh, request, route

# --- admission -----------------------------------------------------------------------------------


def pressure(held: int, owed: float = 0.0) -> MemberPressure:
    return MemberPressure(member_id="m", in_flight=held, pool_in_flight=held, pool_owed_tokens=owed)


def test_requests_enter_until_running_and_waiting_places_are_taken() -> None:
    limit = PoolLimit(running=2, waiting=3)
    entered = [admit(POLICY, request(), pressure(held), limit).admitted for held in range(7)]
    assert entered == [True] * 5 + [False] * 2


def test_pool_without_a_limit_takes_everyone() -> None:
    assert admit(POLICY, request(), pressure(10**6), PoolLimit()).reason is AdmissionReason.UNLIMITED


def test_many_answers_need_as_many_places_but_can_enter_an_empty_pool() -> None:
    limit = PoolLimit(running=4)
    assert admit(POLICY, request(n=128), pressure(0), limit).admitted
    assert not admit(POLICY, request(n=3), pressure(2), limit).admitted


@given(st.floats(0, 1e9), st.none() | st.floats(0, 1e6))
def test_refused_clients_are_told_when_to_return(owed: float, speed: float | None) -> None:
    refused = admit(POLICY, request(), pressure(1, owed), PoolLimit(running=1, output_tokens_per_s=speed))
    assert refused.reason is AdmissionReason.QUEUE_FULL
    assert refused.retry_after_s is not None
    assert 1.0 <= refused.retry_after_s <= 120.0


def test_retry_follows_the_tokens_owed() -> None:
    limit = PoolLimit(running=1, output_tokens_per_s=100.0)
    assert admit(POLICY, request(), pressure(1, 4000.0), limit).retry_after_s == 20.0


# --- grades and alerts -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("success", "latency_ms", "expected"),
    [
        (0.99, 100.0, "A+"),
        (0.99, 100.1, "A"),
        (0.9899, 100.0, "A"),
        (0.95, 200.0, "A"),
        (0.9499, 200.0, "B"),
        (0.95, 200.1, "B"),
        (0.90, 500.0, "B"),
        (0.90, 500.1, "C"),
        (0.8999, 10.0, "C"),
        (0.80, 1e9, "C"),
        (0.80, None, "C"),
        (0.7999, 10.0, "D"),
        (None, 10.0, None),
    ],
)
def test_grades_follow_the_table_exactly_at_its_borders(
    success: float | None, latency_ms: float | None, expected: str | None
) -> None:
    assert grade(success, latency_ms) == expected


def test_a_healthy_server_needs_no_advice() -> None:
    assert recommendations(POLICY, Health(members=3), StrategyName.PERFORMANCE, 0.99) == ()


# --- last known good -------------------------------------------------------------------------------


def served(history: History, share: float, requests: int = 400, load: float | None = 0.5) -> History:
    for at in range(requests):
        history = counted(POLICY, history, load, within=(at % 100) < share * 100)
    return history


def test_regression_puts_the_last_good_configuration_back_once() -> None:
    history = served(applied(History(), 1, "good", 0.0), 0.99)
    history = served(applied(history, 2, "bad", 100.0), 0.6)
    verdict = judge(history)
    assert (verdict.revert_to, verdict.reason) == (1, RevertReason.REGRESSION)
    assert (verdict.good_fraction, verdict.now_fraction) == (0.99, 0.6)
    back = applied(history, 3, "good", 200.0, reverting=True)
    assert judge(served(back, 0.5)).reason is RevertReason.ALREADY_REVERTED
    pinned = served(applied(back, 4, "bad", 300.0), 0.5)
    assert judge(pinned).reason is RevertReason.PINNED


def test_like_load_is_compared_with_like() -> None:
    history = served(applied(History(), 1, "a", 0.0), 0.99, load=0.1)
    history = served(applied(history, 2, "b", 1.0), 0.6, load=0.95)
    assert judge(history).reason is RevertReason.NOT_ENOUGH


def test_small_differences_are_no_regression() -> None:
    history = served(applied(History(), 1, "a", 0.0), 0.99)
    assert judge(served(applied(history, 2, "b", 1.0), 0.97)).reason is RevertReason.NO_REGRESSION


def test_without_an_earlier_good_configuration_nothing_returns() -> None:
    assert judge(History()).reason is RevertReason.NO_GOOD_VERSION
    first = served(applied(History(), 1, "a", 0.0), 0.5)
    assert judge(served(applied(first, 2, "b", 1.0), 0.2)).reason is RevertReason.NO_GOOD_VERSION
    assert counted(POLICY, History(), 0.5, within=True) == History()


def test_requests_without_a_load_count_at_middle_load() -> None:
    assert counted(POLICY, applied(History(), 1, "a", 0.0), None, within=True).applied[-1].levels[1] == (1, 1)


# --- the step --------------------------------------------------------------------------------------


def reading(waiting: int, now_s: float = 0.0) -> EngineReading:
    return EngineReading(
        replica_id="a", read_s=now_s, running_requests=32, waiting_requests=waiting, capacity_requests=32
    )


def test_a_step_decides_every_pool_and_names_the_worst() -> None:
    seen = Observation(
        now_s=0.0, engines={"a": [replace(reading(0), running_requests=0)], "b": [reading(30)]}
    )
    state, decision = step(POLICY, State(), seen)
    assert decision.worst_pool == "b"
    assert decision.worst.strategy.name is StrategyName.PERFORMANCE
    assert decision.pools["a"].strategy.name is StrategyName.QUALITY
    assert decision.evidence[0].value == decision.worst.score.value
    assert {e.name for e in decision.evidence if e.value is None} >= {"gpu", "memory"}
    assert step(POLICY, State(), seen) == (state, decision)


def test_nothing_to_observe_is_one_local_pool_of_unknown_load() -> None:
    _, decision = step(POLICY, State(), Observation(now_s=0.0))
    assert decision.worst_pool == "local"
    assert decision.worst.score.value is None
    assert decision.worst.strategy.name is StrategyName.BALANCED


def test_the_host_alone_decides_where_engines_are_silent() -> None:
    host = HostReading(read_s=0.0, cpu_usage_percent=100.0)
    _, decision = step(POLICY, State(), Observation(now_s=0.0, host=host))
    assert decision.worst.strategy.name is StrategyName.PERFORMANCE


def test_changes_of_strategy_are_marked() -> None:
    policy = Policy(dwell_s=0.0)
    state, first = step(policy, State(), Observation(now_s=0.0, engines={"a": [reading(30)]}))
    idle = replace(reading(0, 60.0), running_requests=0)
    _, then = step(policy, state, Observation(now_s=60.0, engines={"a": [idle]}))
    assert (first.worst.changed, then.worst.changed) == (False, True)


def test_a_step_takes_out_failing_members_and_returns_drifted_beliefs() -> None:
    known = fresh(route())
    for _ in range(5):
        known["accurate"] = learn(POLICY, known["accurate"], failed())
    _, decision = step(POLICY, State(), Observation(now_s=6.0, beliefs={"auto": known}))
    assert [change.member_id for change in decision.health["auto"]] == ["accurate"]
    assert decision.beliefs["auto"]["accurate"].health is MemberHealth.OUT
    assert decision.beliefs["auto"]["fast"].updated_s == 6.0
