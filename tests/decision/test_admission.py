"""Who enters: room for all that can be in time, and an honest moment to try again for the rest."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.decision.build import (
    POLICY,
    at_load,
    fresh,
    member,
    pressures,
    request,
    route,
    succeeded,
    taught,
)

from loadwise.decision.admission import (
    LATE_ALONE,
    LATE_FROM,
    Admission,
    AdmissionReason,
    PoolLimit,
    admit,
    in_time,
)
from loadwise.decision.choices import Choice
from loadwise.decision.ensemble import select
from loadwise.decision.expected import Latencies
from loadwise.decision.facts import Capabilities, MemberPressure, Objectives, Replica
from loadwise.decision.outcome import learn

OBJECTIVES = Objectives()
seconds = st.floats(0.0, 1e4)


def expected(first_s: float = 0.1, each_s: float = 0.01, **changes: float) -> Latencies:
    values = {"wait_s": 0.0, "first_alone_s": 0.0, "each_alone_s": 0.0, **changes}
    return Latencies(first_s, each_s, **values)


def named(in_flight: int, name: str = "fast", prompt_tokens: int = 100) -> Choice:
    """The choice for a client that names a taught member with so many requests before it."""
    one = route()
    known = taught(one, {"fast": 0.002, "balanced": 0.006, "accurate": 0.02})
    asked = request(model=name, prompt_tokens=prompt_tokens)
    before = pressures(one, **{name: in_flight})
    choice = select(POLICY, one, asked, known, before, at_load(0.5), 0.5, 10.0)
    assert isinstance(choice, Choice)
    return choice


# --- in time -----------------------------------------------------------------------------------------


def test_answers_within_their_objectives_enter() -> None:
    assert in_time(OBJECTIVES, expected()).admitted


def test_a_late_first_token_is_refused_until_the_queue_has_shrunk_by_that_much() -> None:
    late = in_time(OBJECTIVES, expected(first_s=LATE_FROM + 3.4, wait_s=3.0))
    assert (late.admitted, late.reason, late.retry_after_s) == (False, AdmissionReason.TOO_LATE, 4.0)


def test_a_batch_that_is_too_slow_takes_nobody_else() -> None:
    slow = in_time(OBJECTIVES, expected(each_s=0.06))
    assert (slow.admitted, slow.reason, slow.retry_after_s) == (False, AdmissionReason.TOO_SLOW, 1.0)


def test_each_route_has_its_own_objectives() -> None:
    late = expected(first_s=2.0)
    assert not in_time(OBJECTIVES, late).admitted
    assert in_time(replace(OBJECTIVES, time_to_first_token_s=4.0), late).admitted


@given(seconds, seconds)
def test_an_idle_member_refuses_nobody(first_s: float, each_s: float) -> None:
    alone = expected(first_s, each_s, first_alone_s=first_s, each_alone_s=each_s)
    assert in_time(OBJECTIVES, alone).admitted


@given(seconds, seconds, seconds, seconds)
def test_who_enters_is_expected_within_objectives_or_near_what_it_takes_alone(
    first_s: float, each_s: float, first_alone_s: float, each_alone_s: float
) -> None:
    judged = in_time(
        OBJECTIVES, expected(first_s, each_s, first_alone_s=first_alone_s, each_alone_s=each_alone_s)
    )
    first_bound = max(OBJECTIVES.time_to_first_token_s, LATE_ALONE * first_alone_s)
    each_bound = max(OBJECTIVES.time_per_output_token_s, LATE_ALONE * each_alone_s)
    if judged.admitted:
        assert (first_s <= first_bound, each_s <= each_bound) == (True, True)
    else:
        assert judged.retry_after_s is not None
        assert 1.0 <= judged.retry_after_s <= max(1.0, first_s + 1.0)


@given(seconds, st.floats(0.0, 1e4))
def test_a_longer_queue_never_opens_the_door(first_s: float, longer_s: float) -> None:
    if not in_time(OBJECTIVES, expected(first_s)).admitted:
        assert not in_time(OBJECTIVES, expected(first_s + longer_s)).admitted


# --- what is expected --------------------------------------------------------------------------------


def test_a_named_member_is_admitted_by_the_same_rule_as_any() -> None:
    quiet, busy = named(3), named(400)
    assert quiet.expected is not None
    assert busy.expected is not None
    assert in_time(OBJECTIVES, quiet.expected).admitted
    assert in_time(OBJECTIVES, busy.expected).reason is AdmissionReason.TOO_LATE


def test_nobody_waits_while_a_place_is_free() -> None:
    waits = [choice.expected.wait_s for n in (0, 31, 32, 64) if (choice := named(n)).expected is not None]
    assert waits[:2] == [0.0, 0.0]
    assert 0.0 < waits[2] < waits[3]


def test_those_who_wait_do_not_slow_down_those_who_run() -> None:
    assert named(64).time_per_output_token_s == pytest.approx(named(33).time_per_output_token_s)


def test_waits_teach_how_long_waiting_takes_and_not_how_fast_prompts_are_read() -> None:
    belief = taught(route(), {"accurate": 0.02})["accurate"]
    for at in range(40):
        waited = succeeded(
            at_s=10.0 + at / 100, time_to_first_token_s=2.05, total_s=4.05, wait_s=1.0, work=400.0
        )
        belief = learn(POLICY, belief, waited)
    assert belief.wait_trend > 1.5
    assert belief.first_fit == pytest.approx(
        taught(route(), {"accurate": 0.02})["accurate"].first_fit, rel=0.05
    )


def test_without_news_waits_are_believed_as_computed_again() -> None:
    belief = taught(route(), {"accurate": 0.02})["accurate"]._replace(wait_trend=3.0)
    after = learn(POLICY, belief, succeeded(at_s=300.0, total_s=2.05, time_to_first_token_s=0.05))
    assert after.wait_trend == pytest.approx(1.0, abs=0.01)


# --- what was not measured ---------------------------------------------------------------------------


def judged(answers: list[tuple[int, float]], in_flight: int, prompt_tokens: int = 100) -> Admission:
    """What a server without known places, seen at these (requests at once, seconds per token), says."""
    replica = Replica(replica_id="up-0", pool_id="up")
    one = route(
        members=(member("up", replicas=(replica,), capabilities=Capabilities()),), default_member="up"
    )
    known = fresh(one)
    for at, (concurrency, each_s) in enumerate(answers):
        ended = succeeded(
            "up",
            10.0 * at / len(answers),
            concurrency=concurrency,
            time_to_first_token_s=2 * each_s,
            total_s=102 * each_s,
            prompt_tokens=prompt_tokens,
        )
        known["up"] = learn(POLICY, known["up"], ended)
    before = {"up": MemberPressure(member_id="up", in_flight=in_flight, pool_in_flight=in_flight)}
    asked = request(prompt_tokens=prompt_tokens)
    choice = select(POLICY, one, asked, known, before, at_load(0.3), 0.5, 10.0)
    assert isinstance(choice, Choice)
    assert choice.expected is not None
    return in_time(OBJECTIVES, choice.expected)


@pytest.mark.parametrize("each_s", [0.005, 0.015, 0.03, 0.04, 0.2])
@pytest.mark.parametrize("prompt_tokens", [100, 4000])
def test_a_server_seen_with_one_request_at_a_time_refuses_no_burst(each_s: float, prompt_tokens: int) -> None:
    assert judged([(1, each_s)] * 40, 200, prompt_tokens).admitted


@given(st.lists(st.integers(1, 64), min_size=20, max_size=60), st.floats(0.001, 0.2), st.integers(1, 1000))
def test_a_server_that_never_slowed_down_refuses_nobody(
    seen: list[int], each_s: float, in_flight: int
) -> None:
    assert judged([(concurrency, each_s) for concurrency in seen], in_flight).admitted


def test_a_server_that_slowed_down_is_not_filled_beyond_that() -> None:
    seen = [(concurrency, 0.01 + 0.001 * concurrency) for concurrency in range(1, 41)]
    assert judged(seen, 20).admitted
    assert judged(seen, 50).reason is AdmissionReason.TOO_SLOW


# --- room --------------------------------------------------------------------------------------------


@given(st.integers(0, 500), st.integers(1, 64), st.integers(0, 128), st.integers(1, 32))
def test_places_are_never_exceeded(held: int, running: int, waiting: int, answers: int) -> None:
    pressure = replace(pressures(route())["fast"], pool_in_flight=held)
    judged = admit(POLICY, request(n=answers), pressure, PoolLimit(running=running, waiting=waiting))
    if judged.admitted:
        assert held == 0 or held + answers <= running + waiting
    else:
        assert judged.reason is AdmissionReason.QUEUE_FULL
        assert judged.retry_after_s is not None
        assert judged.retry_after_s >= 1.0


def test_a_member_that_nobody_measured_still_says_what_it_assumes() -> None:
    one = route()
    choice = select(POLICY, one, request(model="fast"), fresh(one), pressures(one), at_load(0.1), 0.5, 0.0)
    assert isinstance(choice, Choice)
    assert choice.expected is not None
    assert choice.expected.wait_s == 0.0
