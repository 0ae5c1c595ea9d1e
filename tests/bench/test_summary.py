"""Figures: what counts as good, what a percentile is, what an interval holds."""

from __future__ import annotations

import statistics
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadwise.bench.client import Sample
from loadwise.bench.intervals import paired_difference, paired_ratio
from loadwise.bench.summary import percentile, quality_served, shares, summarize, timeline, within
from loadwise.decision.facts import Objectives

OBJECTIVES = Objectives()
GOOD = Sample(
    model="auto",
    scheduled_s=0.5,
    lag_s=0.001,
    time_to_first_token_s=0.4,
    time_per_output_token_s=0.02,
    total_s=0.8,
    input_tokens=10,
    output_tokens=21,
    prompt_tokens=10,
    completion_tokens=21,
    status=200,
    member="accurate",
    strategy="quality",
)
FAILED = replace(
    GOOD, error="HTTP 429", status=429, time_to_first_token_s=None, completion_tokens=None, member=None
)


@pytest.mark.parametrize(
    ("sample", "good"),
    [
        (GOOD, True),
        (replace(GOOD, time_to_first_token_s=1.0, time_per_output_token_s=0.05), True),
        (replace(GOOD, time_to_first_token_s=1.001), False),
        (replace(GOOD, time_per_output_token_s=0.051), False),
        (replace(GOOD, time_per_output_token_s=None), True),
        (replace(GOOD, error="stream ended early"), False),
        (FAILED, False),
    ],
)
def test_good_means_answered_within_both_objectives(sample: Sample, good: bool) -> None:
    assert within(sample, OBJECTIVES) is good


def test_refused_and_failed_requests_count_as_missed() -> None:
    summary = summarize("auto", [GOOD, GOOD, FAILED, FAILED], 2.0, OBJECTIVES, {"accurate": 0.9})
    assert summary.requests == 4
    assert summary.answered == 2
    assert summary.goodput_per_s == 1.0
    assert summary.offered_per_s == 2.0
    assert summary.within_fraction == 0.5
    assert summary.failures == {"HTTP 429": 2}
    assert summary.output_tokens_per_s == 21.0
    assert summary.quality_served == pytest.approx(0.9)
    assert summary.member_shares == {"accurate": 1.0}


def test_throughput_is_counted_until_the_last_answer_ended() -> None:
    late = replace(GOOD, total_s=9.5)
    assert summarize("auto", [late], 2.0, OBJECTIVES, {}).output_tokens_per_s == pytest.approx(2.1)


def test_a_run_without_answers_has_no_latencies_and_no_quality() -> None:
    summary = summarize("auto", [FAILED], 1.0, OBJECTIVES, {"accurate": 1.0})
    assert summary.goodput_per_s == 0.0
    assert summary.time_to_first_token_s == {"p50": None, "p90": None, "p95": None, "p99": None}
    assert summary.quality_served is None
    assert summary.prompt_length_ratio is None
    assert summarize("auto", [], 1.0, OBJECTIVES, {}).within_fraction == 0.0


def test_quality_is_unknown_when_it_is_unknown_for_anyone_who_answered() -> None:
    other = replace(GOOD, member="fast")
    assert quality_served([GOOD, other], {"accurate": 1.0, "fast": 0.5}) == 0.75
    assert quality_served([GOOD, other], {"accurate": 1.0, "fast": None}) is None
    assert quality_served([GOOD, other], {"accurate": 1.0}) is None


def test_lengths_that_were_not_reproduced_are_counted() -> None:
    summary = summarize(
        "auto", [GOOD, replace(GOOD, completion_tokens=5, prompt_tokens=20)], 1.0, OBJECTIVES, {}
    )
    assert summary.short_answers == 1
    assert summary.prompt_length_ratio == 1.5


@given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=50))
def test_percentiles_agree_with_the_standard_library(values: list[float]) -> None:
    cuts = statistics.quantiles(values, n=100, method="inclusive")
    for percent in (1, 50, 99):
        assert percentile(values, percent) == pytest.approx(cuts[percent - 1], rel=1e-9, abs=1e-6)


def test_percentiles_at_the_edges() -> None:
    assert percentile([], 50) is None
    assert percentile([3.0], 99) == 3.0
    assert percentile([1.0, 2.0], 100) == 2.0


def test_shares_leave_unknown_names_out() -> None:
    assert shares(["a", "b", "a", None]) == {"a": pytest.approx(2 / 3), "b": pytest.approx(1 / 3)}
    assert shares([]) == {}


def test_the_timeline_holds_every_request_once() -> None:
    samples = [replace(GOOD, scheduled_s=t / 10) for t in range(100)] + [replace(FAILED, scheduled_s=10.0)]
    parts = timeline(samples, 10.0, OBJECTIVES, bins=5)
    assert [part["t_s"] for part in parts] == [0.0, 2.0, 4.0, 6.0, 8.0]
    assert sum(part["offered_per_s"] * 2.0 for part in parts) == pytest.approx(101)
    assert sum(part["members"].get("accurate", 0) for part in parts) == 100
    assert parts[0]["strategies"] == {"quality": 20}
    assert len(timeline(samples, 0.5, OBJECTIVES)) == 1


def test_a_paired_interval_is_students() -> None:
    # By hand: differences 1, 2, 3; mean 2, deviation 1, t(2) = 4.303, half width 4.303 / sqrt(3).
    interval = paired_difference([2.0, 4.0, 6.0], [1.0, 2.0, 3.0])
    assert interval.mean == 2.0
    assert interval.high == pytest.approx(2.0 + 4.303 / 3**0.5)
    assert interval.low == pytest.approx(2.0 - 4.303 / 3**0.5)


def test_one_pair_has_no_interval_and_none_is_an_error() -> None:
    assert paired_difference([2.0], [1.0]).low is None
    with pytest.raises(ValueError, match="at least one pair"):
        paired_difference([], [])
    with pytest.raises(ValueError, match=r"shorter|longer"):
        paired_difference([1.0], [1.0, 2.0])


def test_many_pairs_use_the_normal_quantile() -> None:
    values = [float(n % 2) for n in range(64)]
    interval = paired_difference(values, [0.0] * 64)
    assert interval.high == pytest.approx(0.5 + 1.96 * statistics.stdev(values) / 8)


def test_ratios_are_geometric_and_absent_where_something_is_zero() -> None:
    interval = paired_ratio([2.0, 8.0], [1.0, 1.0])
    assert interval is not None
    assert interval.mean == pytest.approx(4.0)
    assert paired_ratio([1.0, 0.0], [1.0, 1.0]) is None
    assert paired_ratio([], []) is None
