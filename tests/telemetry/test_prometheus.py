"""What Prometheus is told: true, bounded, and nothing invented."""

from __future__ import annotations

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse

from loadwise.decision.facts import Ending, Outcome
from loadwise.telemetry import names
from loadwise.telemetry.metric import Kind, Metric
from loadwise.telemetry.names import METRICS
from loadwise.telemetry.prometheus import TOGETHER, Telemetry, time_per_output_token_s


def outcome(**changes: object) -> Outcome:
    values: dict[str, object] = {
        "request_id": "r1",
        "member_id": "fast",
        "replica_id": "fast/0",
        "ending": Ending.SUCCEEDED,
        "finished_s": 10.0,
        "total_s": 1.1,
        "time_to_first_token_s": 0.1,
        "prompt_tokens": 7,
        "output_tokens": 51,
        **changes,
    }
    return Outcome(**values)  # type: ignore[arg-type]


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)
def test_names_follow_the_rules_of_prometheus(metric: Metric) -> None:
    assert metric.name.startswith("loadwise_")
    assert metric.name.endswith("_total") == (metric.kind is Kind.COUNTER)
    assert metric.name.endswith(metric.unit)
    assert bool(metric.buckets) == (metric.kind is Kind.HISTOGRAM)
    assert list(metric.buckets) == sorted(set(metric.buckets))


def test_counters_agree_with_what_happened() -> None:
    telemetry = Telemetry()
    for ending in (Ending.SUCCEEDED, Ending.SUCCEEDED, Ending.FAILED, Ending.ABANDONED):
        telemetry.ended(outcome(ending=ending), ending is Ending.SUCCEEDED)
    labels = {"route": "auto", "member": "fast"}
    assert telemetry.value(names.REQUESTS, {**labels, "ending": "succeeded"}) == 2
    assert telemetry.value(names.REQUESTS, {**labels, "ending": "abandoned"}) == 1
    assert telemetry.value(names.OUTPUT_TOKENS, {"member": "fast"}) == 204
    assert telemetry.value(names.WITHIN_OBJECTIVES, {"route": "auto", "member": "fast"}) == 2
    assert telemetry.value(names.MISSED_OBJECTIVES, {"route": "auto", "member": "fast"}) == 2
    assert telemetry.value(names.FAULTS, {"member": "fast"}) == 1


def test_whoever_looks_sees_every_request_that_ended_however_many_are_counted_together() -> None:
    telemetry = Telemetry()
    labels = {"route": "auto", "member": "fast", "ending": "succeeded"}
    for number in range(1, 2 * TOGETHER + 3):
        telemetry.ended(outcome())
        assert telemetry.value(names.REQUESTS, labels) == number
    for _ in range(2 * TOGETHER + 3):
        telemetry.ended(outcome())
    assert telemetry.value(names.REQUESTS, labels) == 4 * TOGETHER + 5


def test_outcomes_told_by_several_threads_are_counted_once_each() -> None:
    telemetry, labels = Telemetry(), {"route": "auto", "member": "fast", "ending": "succeeded"}

    def tell() -> None:
        for _ in range(500):
            telemetry.ended(outcome())

    threads = [threading.Thread(target=tell) for _ in range(4)]
    for thread in threads:
        thread.start()
    for _ in range(20):
        telemetry.render()
    for thread in threads:
        thread.join()
    assert telemetry.value(names.REQUESTS, labels) == 2000


def test_an_answer_without_tokens_leaves_the_histograms_alone() -> None:
    telemetry = Telemetry()
    telemetry.ended(outcome(time_to_first_token_s=None, output_tokens=None, total_s=None))
    assert b'loadwise_time_to_first_token_seconds_count{member="fast"}' not in telemetry.render()[0]


def test_time_per_token_leaves_the_first_token_out() -> None:
    assert time_per_output_token_s(outcome()) == pytest.approx(0.02)
    assert time_per_output_token_s(outcome(output_tokens=1)) is None


def samples(telemetry: Telemetry) -> int:
    return sum(len(family.samples) for family in parse(telemetry.render()[0].decode()))


def test_a_million_names_add_few_series_and_lose_no_count() -> None:
    telemetry = Telemetry()
    before = samples(telemetry)
    for number in range(1_000_000):
        telemetry.count(names.WITHIN_OBJECTIVES, f"model-{number}", "fast")
    assert samples(telemetry) - before <= 50
    families = {family.name: family for family in parse(telemetry.render()[0].decode())}
    assert sum(s.value for s in families["loadwise_within_objectives"].samples) == 1_000_000


def test_what_could_not_be_read_is_absent_and_never_zero() -> None:
    telemetry = Telemetry()
    readings: dict[str, float | None] = {"cpu": None}
    telemetry.gauges_from(lambda: [(names.CPU_USAGE, (), readings["cpu"])])
    assert telemetry.value(names.CPU_USAGE) is None
    readings["cpu"] = 0.25
    assert telemetry.value(names.CPU_USAGE) == 0.25


@given(st.text(max_size=20), st.floats(min_value=0, max_value=1e6))
def test_both_formats_can_be_parsed_whatever_a_member_is_called(member: str, seconds: float) -> None:
    telemetry = Telemetry()
    telemetry.count(names.OUTPUT_TOKENS, member)
    telemetry.observe(names.FIRST_TOKEN_SECONDS, member, value=seconds)
    plain, plain_type = telemetry.render()
    opened, opened_type = telemetry.render("application/openmetrics-text; version=1.0.0")
    assert plain_type.startswith("text/plain; version=0.0.4")
    assert plain.endswith(b"\n")
    assert list(parse(plain.decode()))
    assert opened_type.startswith("application/openmetrics-text")
    assert opened.endswith(b"# EOF\n")
    assert list(parse_openmetrics(opened.decode()))


def test_buckets_count_what_is_at_most_their_bound() -> None:
    telemetry = Telemetry()
    for value in (0.004, 0.005, 0.006, 500.0):
        telemetry.observe(names.FIRST_TOKEN_SECONDS, "m", value=value)
    families = {family.name: family for family in parse(telemetry.render()[0].decode())}
    samples = {s.labels.get("le"): s.value for s in families[names.FIRST_TOKEN_SECONDS.name].samples}
    assert (samples["0.005"], samples["0.01"], samples["120.0"], samples["+Inf"]) == (2, 3, 3, 4)


def test_counting_from_several_threads_loses_nothing() -> None:
    telemetry = Telemetry()

    def work() -> None:
        for _ in range(2000):
            telemetry.count(names.OUTPUT_TOKENS, "m")

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert telemetry.value(names.OUTPUT_TOKENS, {"member": "m"}) == 8000
