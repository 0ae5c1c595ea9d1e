"""What the load score promises: range, monotony, absence, and sense."""

from __future__ import annotations

import math
from dataclasses import fields, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadwise.decision.facts import EngineReading, HostReading, LoadWeights, Objectives, ServiceReading
from loadwise.decision.load import COMPONENTS, ServerLoadMetrics, measure, score

ORIGIN = (
    "cpu_usage_percent",
    "memory_usage_percent",
    "gpu_utilization",
    "active_requests",
    "queue_depth",
    "throughput_tokens_per_sec",
    "avg_latency_ms",
    "error_rate",
)
WEIGHTS = LoadWeights()
anything = st.none() | st.floats() | st.integers(min_value=-5, max_value=10**9)
RISING = (
    "cpu_usage_percent",
    "memory_usage_percent",
    "gpu_utilization",
    "active_requests",
    "queue_depth",
    "error_rate",
    "kv_cache_usage_fraction",
    "time_to_first_token_ms",
    "queue_fraction",
    "in_flight_fraction",
)


@st.composite
def any_metrics(draw: st.DrawFn) -> ServerLoadMetrics:
    return ServerLoadMetrics(**{f.name: draw(anything) for f in fields(ServerLoadMetrics)})


def test_origins_fields_come_first_and_by_position() -> None:
    metrics = ServerLoadMetrics(65.0, 70.0, 80.0, 4, 2, 150.0, 120.0, 0.01)
    assert tuple(f.name for f in fields(metrics))[:8] == ORIGIN
    assert [getattr(metrics, name) for name in ORIGIN] == [65.0, 70.0, 80.0, 4, 2, 150.0, 120.0, 0.01]
    assert 0.0 <= (metrics.overall_load_score or -1.0) <= 1.0


@pytest.mark.parametrize("nonsense", [math.nan, math.inf, -math.inf, -1.0, None])
def test_what_is_no_measurement_is_absent_and_named(nonsense: float | None) -> None:
    metrics = ServerLoadMetrics(cpu_usage_percent=nonsense, queue_depth=0)
    assert metrics.cpu_usage_percent is None
    assert "cpu_usage_percent" in metrics.absent
    assert "queue_depth" not in metrics.absent


def test_nothing_read_has_no_score() -> None:
    assert ServerLoadMetrics().overall_load_score is None
    assert score(ServerLoadMetrics(), WEIGHTS).absent == tuple(COMPONENTS)


def test_failures_alone_are_no_high_load() -> None:
    refusing = score(ServerLoadMetrics(error_rate=1.0), WEIGHTS)
    assert refusing.value == pytest.approx(0.2)
    assert score(ServerLoadMetrics(error_rate=0.01), WEIGHTS).value == pytest.approx(0.04)
    beside = score(ServerLoadMetrics(error_rate=1.0, time_to_first_token_ms=1.0), WEIGHTS)
    without = score(ServerLoadMetrics(error_rate=0.0, time_to_first_token_ms=1.0), WEIGHTS)
    assert (beside.value or 0.0) > (without.value or 0.0)


def test_weights_of_zero_leave_no_score() -> None:
    only_queue = LoadWeights(
        queue=1.0,
        kv_cache=0.0,
        in_flight=0.0,
        time_to_first_token=0.0,
        cpu=0.0,
        memory=0.0,
        gpu=0.0,
        error_rate=0.0,
    )
    assert score(ServerLoadMetrics(cpu_usage_percent=90.0), only_queue).value is None
    assert score(ServerLoadMetrics(cpu_usage_percent=90.0, queue_depth=4), only_queue).value == pytest.approx(
        0.5
    )


@given(any_metrics())
def test_score_is_in_range_for_any_reading(metrics: ServerLoadMetrics) -> None:
    found = score(metrics, WEIGHTS)
    assert found.value is None or 0.0 <= found.value <= 1.0
    assert all(0.0 <= part <= 1.0 for part in found.parts.values())
    assert set(found.parts) | set(found.absent) == set(COMPONENTS)


@given(any_metrics())
def test_score_is_the_weighted_mean_of_its_parts(metrics: ServerLoadMetrics) -> None:
    found = score(metrics, WEIGHTS)
    total = sum(getattr(WEIGHTS, name) for name in found.parts)
    if found.value is not None:
        mean = sum(getattr(WEIGHTS, name) * part for name, part in found.parts.items()) / total
        assert found.value == pytest.approx(mean)


@given(any_metrics(), st.sampled_from(RISING), st.floats(min_value=0, max_value=1e6))
def test_score_never_falls_when_a_reading_rises(metrics: ServerLoadMetrics, name: str, more: float) -> None:
    before = getattr(metrics, name)
    if before is not None:
        after = replace(metrics, **{name: before + more})
        assert (score(after, WEIGHTS).value or 0.0) >= (score(metrics, WEIGHTS).value or 0.0) - 1e-9


IDLE = {
    "memory_usage_percent": 75.0,
    "gpu_utilization": 0.0,
    "cpu_usage_percent": 4.0,
    "active_requests": 0,
    "queue_depth": 0,
    "error_rate": 0.0,
    "kv_cache_usage_fraction": 0.0,
    "capacity_requests": 32,
}
FULL = {
    "memory_usage_percent": 40.0,
    "cpu_usage_percent": 30.0,
    "gpu_utilization": 100.0,
    "active_requests": 32,
    "error_rate": 0.0,
    "kv_cache_usage_fraction": 0.1,
    "time_to_first_token_ms": 500.0,
}


@given(st.sets(st.sampled_from(sorted(IDLE))))
def test_idle_server_is_under_little_load_whatever_can_be_read(present: set[str]) -> None:
    value = ServerLoadMetrics(**{name: IDLE[name] for name in present}).overall_load_score
    assert value is None or value < 0.3


@given(st.sets(st.sampled_from(sorted(FULL))))
def test_full_server_with_a_queue_is_under_high_load_whatever_else_is_read(present: set[str]) -> None:
    rest = {name: FULL[name] for name in present}
    # What one utilisation says alone is worth less than the queue, not nothing.
    value = ServerLoadMetrics(queue_depth=12, capacity_requests=32, **rest).overall_load_score
    assert value is not None
    assert value > 0.8


def test_busy_cpu_alone_is_no_overload_on_an_embedded_engine() -> None:
    one_request = ServerLoadMetrics(100.0, 60.0, None, 1, 0, capacity_requests=32)
    assert (one_request.overall_load_score or 1.0) < 0.3


def test_late_first_tokens_count_as_a_queue_that_the_engine_hides() -> None:
    honest = ServerLoadMetrics(
        active_requests=4, queue_depth=0, capacity_requests=32, time_to_first_token_ms=200.0
    )
    lying = replace(honest, time_to_first_token_ms=10_000.0)
    assert score(honest, WEIGHTS).parts["queue"] == 0.0
    assert score(lying, WEIGHTS).parts["queue"] == 1.0
    assert (lying.overall_load_score or 0.0) > 0.8


def test_objectives_move_the_saturation_of_first_tokens() -> None:
    metrics = ServerLoadMetrics(time_to_first_token_ms=500.0)
    patient = Objectives(time_to_first_token_s=2.0)
    assert score(metrics, WEIGHTS).parts["time_to_first_token"] == pytest.approx(0.5)
    assert score(metrics, WEIGHTS, patient).parts["time_to_first_token"] == pytest.approx(0.25)


def test_measure_sums_engines_and_takes_the_fullest_for_pressure() -> None:
    engines = [
        EngineReading(
            replica_id="a",
            read_s=9.0,
            running_requests=32,
            waiting_requests=8,
            capacity_requests=32,
            output_tokens_per_s=100.0,
            time_per_output_token_s=0.02,
        ),
        EngineReading(
            replica_id="b", read_s=9.0, running_requests=0, waiting_requests=0, capacity_requests=32
        ),
    ]
    service = ServiceReading(read_s=9.5, avg_latency_ms=80.0, error_fraction=0.0, time_to_first_token_s=0.2)
    host = HostReading(read_s=9.0, cpu_usage_percent=50.0)
    metrics = measure(engines, host, service, 10.0, 30.0)
    assert (metrics.active_requests, metrics.queue_depth, metrics.capacity_requests) == (32, 8, 64)
    assert (metrics.queue_fraction, metrics.in_flight_fraction) == (0.25, 1.25)
    assert metrics.throughput_tokens_per_sec == 100.0
    assert metrics.time_to_first_token_ms == pytest.approx(200.0)
    assert metrics.time_per_output_token_ms == pytest.approx(20.0)
    assert metrics.gpu_utilization is None
    assert (metrics.overall_load_score or 0.0) > 0.8


def test_stale_readings_are_absent_not_zero() -> None:
    old = EngineReading(replica_id="a", read_s=0.0, running_requests=3, waiting_requests=1)
    metrics = measure(
        [old], HostReading(read_s=0.0, cpu_usage_percent=9.0), ServiceReading(read_s=0.0), 31.0, 30.0
    )
    assert set(metrics.absent) == {f.name for f in fields(metrics)}


def test_requests_in_flight_come_from_the_gateway_where_engines_are_silent() -> None:
    silent = EngineReading(replica_id="a", read_s=1.0)
    metrics = measure([silent], None, ServiceReading(read_s=1.0, active_requests=7), 1.0, 30.0)
    assert metrics.active_requests == 7
    assert metrics.queue_depth is None


def test_engines_nonsense_is_left_out_of_sums() -> None:
    odd = EngineReading(
        replica_id="a", read_s=1.0, output_tokens_per_s=math.nan, time_to_first_token_s=math.inf
    )
    fine = EngineReading(replica_id="b", read_s=1.0, output_tokens_per_s=5.0, waiting_requests=-3)
    metrics = measure([odd, fine], None, None, 1.0, 30.0)
    assert metrics.throughput_tokens_per_sec == 5.0
    assert metrics.time_to_first_token_ms is None
    assert metrics.queue_depth is None
