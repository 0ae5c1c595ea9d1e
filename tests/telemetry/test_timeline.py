"""What pages draw: counted once, at every resolution, within bounds."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from loadwise.decision.facts import Ending, Objectives, Outcome
from loadwise.telemetry.latencies import Latencies
from loadwise.telemetry.timeline import Timeline

durations = st.lists(st.floats(1e-5, 1e3), min_size=1, max_size=200)


@given(durations, st.sampled_from([0.5, 0.95, 0.99]))
def test_a_quantile_is_within_three_percent_of_the_true_one(found: list[float], fraction: float) -> None:
    latencies = Latencies()
    for seconds in found:
        latencies.add(seconds)
    rank = max(1, -int(-fraction * len(found) // 1))
    true = sorted(found)[rank - 1]
    assert abs((latencies.quantile_s(fraction) or 0.0) / true - 1.0) < 0.03


@given(durations, durations)
def test_two_merged_are_as_if_all_had_been_counted_by_one(first: list[float], second: list[float]) -> None:
    one, other, both = Latencies(), Latencies(), Latencies()
    for seconds in first:
        one.add(seconds)
        both.add(seconds)
    for seconds in second:
        other.add(seconds)
        both.add(seconds)
    one.merge(other)
    assert one.count == both.count
    assert [one.quantile_s(q) for q in (0.1, 0.5, 0.99)] == [both.quantile_s(q) for q in (0.1, 0.5, 0.99)]


@given(durations, durations)
def test_one_that_is_packed_tells_and_counts_as_before(first: list[float], second: list[float]) -> None:
    plain, packed, other = Latencies(), Latencies(), Latencies()
    for seconds in first:
        plain.add(seconds)
        packed.add(seconds)
    packed.pack()
    wanted = plain.quantiles_s(0.1, 0.5, 0.99)
    assert packed.quantiles_s(0.1, 0.5, 0.99) == wanted
    other.merge(packed)
    assert other.quantiles_s(0.1, 0.5, 0.99) == wanted
    for seconds in second:
        plain.add(seconds)
        packed.add(seconds)
    packed.pack()
    packed.merge(other)
    plain.merge(other)
    assert packed.quantiles_s(0.1, 0.5, 0.99) == plain.quantiles_s(0.1, 0.5, 0.99)
    assert (packed.count, packed.sum_s) == (plain.count, plain.sum_s)


def test_before_the_first_there_is_no_quantile_and_no_mean() -> None:
    assert Latencies().quantile_s(0.5) is None
    assert Latencies().mean_s is None


def outcome(member: str = "fast", ending: Ending = Ending.SUCCEEDED, **facts: object) -> Outcome:
    values: dict[str, object] = {
        "request_id": "r", "member_id": member, "replica_id": f"{member}/0", "ending": ending,
        "finished_s": 0.0, "total_s": 1.0, "time_to_first_token_s": 0.2, "output_tokens": 11, **facts,
    }  # fmt: skip
    return Outcome(**values)  # type: ignore[arg-type]


def note(timeline: Timeline, now_s: float, found: Outcome, *, within: bool | None = True) -> None:
    timeline.ended(
        found, within=within, failed=found.ending is Ending.FAILED, objectives=Objectives(), now_s=now_s
    )


@given(st.lists(st.floats(0, 3500), min_size=1, max_size=100))
def test_every_resolution_counts_the_same_requests(moments: list[float]) -> None:
    timeline = Timeline()
    for now_s in sorted(moments):
        note(timeline, now_s, outcome())
    now_s = max(moments)
    assert timeline.over(86_400, now_s).requests == len(moments)
    assert timeline.over(86_400, now_s).total.count == len(moments)
    recent = sum(now_s - moment < 600 - 4 for moment in moments)
    assert timeline.over(600, now_s).requests >= recent


@given(st.lists(st.floats(0, 3500), min_size=1, max_size=60))
def test_what_is_looked_at_often_is_what_one_look_at_the_end_sees(moments: list[float]) -> None:
    watched, alone = Timeline(), Timeline()
    for now_s in sorted(moments):
        for timeline in (watched, alone):
            note(timeline, now_s, outcome(total_s=1.0 + now_s))
        for span_s in (60.0, 300.0, 3600.0):
            watched.over(span_s, now_s)
    for span_s in (60.0, 300.0, 3600.0):
        assert figures(watched, span_s, max(moments)) == figures(alone, span_s, max(moments))


@given(st.lists(st.floats(0, 500), min_size=1, max_size=60))
def test_what_comes_late_is_counted_once_at_every_resolution(moments: list[float]) -> None:
    timeline = Timeline()
    for now_s in moments:
        note(timeline, now_s, outcome())
    for span_s in (600.0, 86_400.0):
        assert timeline.over(span_s, max(moments)).requests == len(moments)


def test_what_is_older_than_the_span_is_not_in_it_however_long_nothing_came() -> None:
    timeline = Timeline()
    note(timeline, 1.0, outcome())
    assert [timeline.over(span_s, 5000.0).requests for span_s in (20.0, 300.0, 3600.0)] == [0, 0, 0]


def figures(timeline: Timeline, span_s: float, now_s: float) -> tuple[object, ...]:
    whole = timeline.over(span_s, now_s)
    member = whole.members["fast"]
    return (
        whole.requests, whole.within, whole.total.quantiles_s(0.1, 0.9), round(whole.total.sum_s, 6),
        member.requests, member.first_token.count, whole.routes["auto"].requests,
    )  # fmt: skip


def test_memory_stays_bounded_over_a_week() -> None:
    timeline = Timeline()
    for hour in range(24 * 7 * 12):
        note(timeline, 300.0 * hour, outcome())
    now_s = 300.0 * 24 * 7 * 12
    kept = sum(len(timeline.stretches(span, now_s)[1]) for span in (600, 3600, 86_400))
    assert kept <= 300 + 240 + 288 + 3


def test_routes_beyond_the_limit_are_counted_together() -> None:
    timeline = Timeline(route_limit=3)
    for number in range(100):
        note(timeline, 1.0, outcome(route=f"r{number}"))
    routes = timeline.over(300, 1.0).routes
    assert len(routes) == 4
    assert sum(tally.requests for tally in routes.values()) == 100


def test_an_answer_that_its_client_left_says_nothing() -> None:
    timeline = Timeline()
    note(timeline, 1.0, outcome(ending=Ending.ABANDONED))
    assert timeline.over(300, 1.0).requests == 0


def test_each_objective_is_judged_by_its_own_limit() -> None:
    timeline = Timeline()
    note(timeline, 1.0, outcome(time_to_first_token_s=2.0, total_s=2.1))
    note(timeline, 1.0, outcome(time_to_first_token_s=0.1, total_s=5.0))
    tally = timeline.over(300, 1.0).routes["auto"]
    assert (tally.first_timed, tally.first_missed) == (2, 1)
    assert (tally.token_timed, tally.token_missed) == (2, 1)


def test_a_failure_counts_and_its_times_do_not() -> None:
    timeline = Timeline()
    note(timeline, 1.0, outcome(ending=Ending.FAILED), within=False)
    whole = timeline.over(300, 1.0)
    assert (whole.requests, whole.failed, whole.judged, whole.within) == (1, 1, 1, 0)
    assert whole.total.count == 0


@given(st.lists(st.tuples(st.floats(0, 3500), st.booleans()), min_size=1, max_size=60))
def test_a_refused_request_is_judged_as_missed_at_every_resolution(asked: list[tuple[float, bool]]) -> None:
    timeline, refused = Timeline(), sum(turned for _, turned in asked)
    for now_s, turned in sorted(asked):
        timeline.refused("auto", now_s) if turned else note(timeline, now_s, outcome())
    whole = timeline.over(86_400, max(now_s for now_s, _ in asked))
    tally = whole.routes["auto"]
    assert (whole.refused, whole.requests, whole.judged) == (refused, len(asked) - refused, len(asked))
    assert whole.within == len(asked) - refused
    assert (tally.asked, tally.unanswered) == (len(asked), refused)


def test_load_is_the_mean_of_its_samples_and_absent_without_one() -> None:
    timeline = Timeline()
    timeline.sampled(0.0, load=0.2, strategy="quality", waiting=1.0)
    timeline.sampled(1.0, load=0.4, strategy="balanced", waiting=None)
    timeline.sampled(2.0, load=None, strategy=None, waiting=None)
    first, second = timeline.stretches(600, 2.0)[1]
    assert first.load is not None
    assert abs(first.load - 0.3) < 1e-9
    assert (first.strategy, first.waiting) == ("balanced", 1.0)
    assert (second.load, second.strategy, second.waiting) == (None, None, None)
