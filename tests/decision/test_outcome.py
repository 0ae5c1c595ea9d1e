"""What learning promises: like with like, the abandoned teach nothing, removal is never final."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadwise.decision import outcome
from loadwise.decision.beliefs import BATCH_START, Belief, Health, Prior, initial, initial_beliefs
from loadwise.decision.facts import Ending, Objectives, Outcome
from loadwise.decision.health import ramp, review
from loadwise.decision.outcome import learn, within_objectives
from loadwise.decision.rotation import HealthReason, probe_after_s

from .build import POLICY, failed, fresh, route, succeeded, taught

ROUTE = route()


def belief(name: str = "accurate") -> Belief:
    return fresh(ROUTE)[name]


def after(known: Belief, *outcomes: Outcome) -> Belief:
    for one in outcomes:
        known = learn(POLICY, known, one)
    return known


def test_abandoned_requests_teach_nothing() -> None:
    known = belief()
    assert learn(POLICY, known, replace(succeeded(), ending=Ending.ABANDONED)) is known


@pytest.mark.parametrize("status", [400, 404, 413, 422])
def test_the_clients_mistakes_are_not_the_members_fault(status: int) -> None:
    known = belief()
    assert learn(POLICY, known, failed(status=status)) is known


def test_refusals_for_lack_of_room_are_errors_but_no_faults() -> None:
    known = after(belief(), *[failed(at_s=1.0 + at, status=429) for at in range(20)])
    assert known.error_rate == 1.0
    assert known.faults_in_a_row == 0
    assert review(POLICY, {"accurate": known, "fast": belief("fast")}, 22.0) == ()


def test_error_rate_is_zero_before_and_observed_after() -> None:
    assert (belief().error_rate, belief().outcomes, belief().within_fraction) == (0.0, 0, None)
    known = after(belief(), succeeded(), failed(at_s=1.0), succeeded(), succeeded())
    assert known.error_rate == pytest.approx(0.25)
    assert known.outcomes == 4


def test_speed_follows_what_is_observed_at_each_level_of_work() -> None:
    known = belief()
    for at in range(200):
        work = float(at % 40 + 1)
        each = 0.004 + 0.0005 * work
        known = learn(
            POLICY,
            known,
            succeeded(at_s=at * 0.1, work=work, total_s=0.1 + 100 * each, time_to_first_token_s=0.1),
        )
    assert known.output_fit.at(5.0) == pytest.approx(0.0065, rel=0.2)
    assert known.output_fit.at(35.0) == pytest.approx(0.0215, rel=0.15)
    assert known.measured


@given(st.integers(2, 400), st.integers(2, 400))
def test_length_of_answers_does_not_make_a_member_slow(short: int, long: int) -> None:
    each, first = 0.01, 0.05
    fits = []
    for tokens in (short, long):
        known = belief()
        for at in range(30):
            ended = succeeded(
                at_s=float(at),
                output_tokens=tokens,
                total_s=first + each * (tokens - 1),
                time_to_first_token_s=first,
            )
            known = learn(POLICY, known, ended)
        fits.append(known.output_fit.at(6.0))
    assert fits[0] == pytest.approx(fits[1], rel=1e-6)


def test_cached_prompt_tokens_are_not_counted_as_work() -> None:
    hit = learn(POLICY, belief(), succeeded(cached_tokens=90, time_to_first_token_s=0.02))
    miss = learn(POLICY, belief(), succeeded(cached_tokens=0, time_to_first_token_s=0.02))
    assert hit.first_fit.at(12.0) > miss.first_fit.at(12.0)


def test_a_latency_without_token_counts_counts_less() -> None:
    bare = succeeded(total_s=12.8, output_tokens=None, time_to_first_token_s=None, prompt_tokens=None)
    whole = succeeded(total_s=12.9, output_tokens=129, time_to_first_token_s=0.1)
    start = belief().output_fit.at(18.0)
    little = learn(POLICY, belief(), bare).output_fit.at(18.0) - start
    much = learn(POLICY, belief(), whole).output_fit.at(18.0) - start
    assert 0.0 < little < much


@pytest.mark.parametrize(
    "odd",
    [
        {"total_s": None},
        {"total_s": float("nan")},
        {"output_tokens": 1},
        {"output_tokens": 0, "time_to_first_token_s": None},
        {"time_to_first_token_s": None},
        {"time_to_first_token_s": -1.0},
    ],
)
def test_outcomes_with_gaps_leave_usable_beliefs(odd: dict[str, float | None]) -> None:
    known = learn(POLICY, belief(), succeeded(**odd))
    assert known.outcomes == 1
    assert 0.0 <= known.output_fit.at(10.0) < 10.0
    assert 0.0 <= known.first_fit.at(10.0) < 10.0


@given(
    st.lists(
        st.tuples(st.floats(0, 50), st.floats(0, 100), st.floats(0, 500), st.booleans()),
        min_size=1,
        max_size=40,
    )
)
def test_fits_never_turn_negative(points: list[tuple[float, float, float, bool]]) -> None:
    known = belief()
    for at, (first, total, work, good) in enumerate(points):
        ended = succeeded(at_s=float(at), time_to_first_token_s=first, total_s=first + total, work=work)
        known = learn(POLICY, known, ended if good else failed(at_s=float(at)))
    for fit in (known.output_fit, known.first_fit):
        assert min(fit.base, fit.slope) >= 0.0
    assert 0.0 <= known.error_rate <= 1.0
    assert 0.2 <= known.trend <= 4.0


def test_only_answers_that_ended_by_themselves_tell_lengths() -> None:
    known = after(
        belief(), succeeded(finish_reason="length"), succeeded(finish_reason="stop", output_tokens=50)
    )
    assert known.answers.total == 1


def test_beliefs_without_news_drift_back_to_their_prior() -> None:
    slow = after(belief(), *[succeeded(total_s=10.1, output_tokens=21) for _ in range(2)])
    start = belief()
    gone = [
        abs(outcome.drifted(POLICY, slow, 10.0 + s).output_fit.at(18.0) - start.output_fit.at(18.0))
        for s in (0, 900, 9000)
    ]
    assert gone[0] > gone[1] > gone[2]
    assert outcome.drifted(POLICY, slow, 0.0) is slow


def quiet(known: Belief, days: float) -> Belief:
    """Looks ten minutes apart, as the loop has them more often."""
    now_s = known.updated_s
    for _ in range(round(days * 144)):
        now_s += 600.0
        known = outcome.drifted(POLICY, known, now_s)
    return known


def test_what_a_busy_member_took_is_still_known_after_a_quiet_night() -> None:
    busy = taught(ROUTE, {"accurate": 0.012}, count=100)["accurate"]
    rested = quiet(busy, 0.5)
    assert rested.weight < 0.001
    assert rested.output_fit.at(18.0) == pytest.approx(busy.output_fit.at(18.0), rel=0.1)
    assert rested.first_fit.at(18.0) == pytest.approx(busy.first_fit.at(18.0), rel=0.1)


def test_what_settled_is_forgotten_in_weeks() -> None:
    busy = taught(ROUTE, {"accurate": 0.012}, count=100)["accurate"]
    new = belief().output_fit.at(18.0)
    away = [abs(quiet(busy, days).output_fit.at(18.0) - new) for days in (1.0, 7.0, 28.0)]
    assert away[0] > 1.5 * away[1] > 3.0 * away[2]


def test_two_outcomes_hardly_settle() -> None:
    few = after(belief(), *[succeeded(total_s=10.1, output_tokens=21) for _ in range(2)])
    assert quiet(few, 0.5).prior.output_idle_s < 0.3 * few.output_fit.base


def test_a_member_that_was_far_too_slow_seems_bearable_again_after_an_hour() -> None:
    slow = taught(ROUTE, {"accurate": 0.5}, count=100)["accurate"]
    objective_s = slow.objectives.time_per_output_token_s
    assert slow.output_fit.at((1.0 + BATCH_START) * slow.cost) > objective_s
    again = quiet(slow, 1 / 12)
    assert again.output_fit.at((1.0 + BATCH_START) * again.cost) < 0.8 * objective_s


def test_weight_halves_in_a_half_life() -> None:
    known = after(belief(), *[succeeded() for _ in range(8)])
    assert outcome.drifted(POLICY, known, 1.0 + POLICY.belief_half_life_s).weight == pytest.approx(
        known.weight / 2
    )


def test_trend_rises_while_a_member_gets_slower_and_falls_back() -> None:
    known = taught(ROUTE, {"accurate": 0.005}, count=60)["accurate"]
    slower = after(
        known, *[succeeded(at_s=11.0 + at, total_s=3.05, time_to_first_token_s=0.05) for at in range(6)]
    )
    assert slower.trend > 1.2
    assert outcome.drifted(POLICY, slower, 1000.0).trend == pytest.approx(1.0)


def test_performance_is_kept_for_each_level_of_load() -> None:
    known = after(
        belief(),
        succeeded(load_score=0.1),
        succeeded(load_score=0.9, total_s=60.0),
        succeeded(load_score=None),
    )
    low, middle, high = known.by_load
    assert (low[1], middle[1], high[1]) == (1.0, 1.0, 0.0)
    assert known.within_fraction == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("ended", "within"),
    [
        (succeeded(), True),
        (succeeded(time_to_first_token_s=1.0, total_s=6.0), True),
        (succeeded(time_to_first_token_s=1.01, total_s=2.0), False),
        (succeeded(total_s=5.2), False),
        (succeeded(output_tokens=1, total_s=0.5), True),
        (succeeded(time_to_first_token_s=None, total_s=6.0), True),
        (succeeded(time_to_first_token_s=None, total_s=6.1), False),
        (succeeded(output_tokens=None), None),
        (failed(), False),
        (failed(status=400), None),
        (replace(succeeded(), ending=Ending.ABANDONED), None),
    ],
)
def test_objectives_borders(ended: Outcome, within: bool | None) -> None:
    assert within_objectives(Objectives(), ended) is within


def test_costs_are_relative_where_all_declare_one() -> None:
    known = fresh(ROUTE)
    assert [known[name].cost for name in ("fast", "balanced", "accurate")] == [1.0, 4.0, 12.0]
    mixed = replace(ROUTE, members=(ROUTE.members[0], replace(ROUTE.members[1], relative_cost=None)))
    assert {b.cost for b in initial_beliefs(mixed, 0.0).values()} == {1.0}
    assert initial(ROUTE.members[0], Objectives(), 0.0).prior.full_work == 38.0


# --- health ------------------------------------------------------------------------------------


def broken(name: str, at_s: float = 1.0, count: int = 5) -> Belief:
    return after(fresh(ROUTE)[name], *[failed(name, at_s) for _ in range(count)])


def test_failing_member_leaves_is_probed_and_returns_on_a_ramp() -> None:
    known = {**fresh(ROUTE), "accurate": broken("accurate")}
    (left,) = review(POLICY, known, 2.0)
    assert (left.health, left.reason) == (Health.OUT, HealthReason.FAULTS_IN_A_ROW)
    assert ramp(left.belief, 3.0) == 0.0
    assert left.belief.probe_at_s == 7.0
    probed = after(left.belief, *[succeeded(at_s=8.0 + at) for at in range(3)])
    (back,) = review(POLICY, {**known, "accurate": probed}, 12.0)
    assert (back.health, back.reason) == (Health.RAMPING, HealthReason.PROBES_PASSED)
    shares = [ramp(back.belief, 12.0 + at) for at in (0.0, 15.0, 30.0)]
    assert shares == [0.1, pytest.approx(0.55), 1.0]
    assert review(POLICY, {**known, "accurate": back.belief}, 20.0) == ()
    (whole,) = review(POLICY, {**known, "accurate": back.belief}, 42.0)
    assert (whole.health, whole.reason, whole.belief.removals) == (
        Health.HEALTHY,
        HealthReason.RAMP_COMPLETE,
        0,
    )


def test_failed_probe_waits_longer() -> None:
    known = {**fresh(ROUTE), "accurate": broken("accurate")}
    (left,) = review(POLICY, known, 2.0)
    again = learn(POLICY, left.belief, failed(at_s=8.0))
    assert again.probe_at_s == 18.0
    assert again.passed == 0


def test_member_that_fails_on_its_ramp_leaves_again_for_longer() -> None:
    on_ramp = broken("accurate", count=2)._replace(health=Health.RAMPING, removals=1, health_since_s=0.0)
    (left,) = review(POLICY, {**fresh(ROUTE), "accurate": on_ramp}, 2.0)
    assert (left.reason, left.belief.removals) == (HealthReason.RAMP_FAILED, 2)
    assert left.belief.probe_at_s == 12.0


def test_half_of_recent_requests_failing_is_enough_without_a_row() -> None:
    known = belief()
    for at in range(12):
        known = after(
            known, failed(at_s=1.0 + at), succeeded(at_s=1.0 + at) if at % 2 else failed(at_s=1.0 + at)
        )
    (left,) = review(POLICY, {**fresh(ROUTE), "accurate": known}, 14.0)
    assert left.reason is HealthReason.FAULT_FRACTION


def test_backoff_is_bounded() -> None:
    assert [probe_after_s(n) for n in (0, 1, 50)] == [5.0, 10.0, 120.0]


@given(st.lists(st.integers(0, 8), min_size=1, max_size=9), st.integers(0, 4))
def test_at_most_half_of_the_members_are_out_and_never_the_last(faults: list[int], already: int) -> None:
    known = {}
    for at, count in enumerate(faults):
        name = f"m{at}"
        one = initial(replace(ROUTE.members[0], member_id=name), Objectives(), 0.0)
        known[name] = after(one, *[failed(name) for _ in range(count)])
    for name in list(known)[: min(already, len(faults) // 2)]:
        known[name] = known[name]._replace(health=Health.OUT)
    for now_s in (2.0, 3.0):
        for change in review(POLICY, known, now_s):
            known[change.member_id] = change.belief
    out = sum(b.health is Health.OUT for b in known.values())
    assert out <= len(known) // 2
    assert len(known) - out >= 1


def test_a_lesson_fills_every_field_of_a_belief_with_its_own_kind() -> None:
    before = after(belief(), *[succeeded(at_s=float(at), load_score=0.5) for at in range(30)])
    learned = learn(POLICY, before, succeeded(at_s=40.0))
    for name, was, found in zip(Belief._fields, before, learned, strict=True):
        assert type(found) is type(was), name
    kept = ("member_id", "prior", "objectives", "quality", "cost", "health", "health_since_s", "probe_at_s")
    assert all(getattr(learned, name) == getattr(before, name) for name in (*kept, "removals"))
    assert (learned.outcomes, learned.passed, learned.faults_in_a_row) == (31, 31, 0)
    assert learned.updated_s == 40.0 < learned.stale_at_s
    assert learned.output_fit == learned.output_line.fit(*prior_of(learned.prior, "output"))
    assert learned.first_fit == learned.first_line.fit(*prior_of(learned.prior, "first"))


def prior_of(prior: Prior, what: str) -> tuple[float, float, float]:
    return getattr(prior, f"{what}_idle_s"), prior.full_work, getattr(prior, f"{what}_full_s")
