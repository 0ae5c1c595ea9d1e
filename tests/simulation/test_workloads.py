"""Seeded workloads: same seed, same requests; rates and lengths as promised."""

from __future__ import annotations

import statistics

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loadwise.errors import ConfigurationError
from loadwise.simulation.workloads import GENERATORS, Arrival, Lengths, bursts, diurnal, generate, steps

NAMES = sorted(GENERATORS)


@pytest.mark.parametrize("name", NAMES)
def test_one_seed_gives_one_workload(name: str) -> None:
    assert list(generate(name, 20.0, 60.0, 7)) == list(generate(name, 20.0, 60.0, 7))
    assert list(generate(name, 20.0, 60.0, 7)) != list(generate(name, 20.0, 60.0, 8))


@pytest.mark.parametrize("name", NAMES)
def test_mean_rate_is_the_rate_asked_for(name: str) -> None:
    arrivals = list(generate(name, 50.0, 600.0, 1))
    assert len(arrivals) / 600.0 == pytest.approx(50.0, rel=0.05)


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(NAMES),
    rate=st.floats(0.1, 50.0),
    duration=st.floats(0.5, 60.0),
    seed=st.integers(),
    context=st.integers(2, 2000),
)
def test_arrivals_are_in_order_within_the_duration_and_fit_the_context(
    name: str, rate: float, duration: float, seed: int, context: int
) -> None:
    arrivals = list(generate(name, rate, duration, seed, Lengths(context_tokens=context)))
    assert [a.t_s for a in arrivals] == sorted(a.t_s for a in arrivals)
    for arrival in arrivals:
        assert 0.0 <= arrival.t_s < duration
        assert arrival.input_tokens >= 1
        assert arrival.output_tokens >= 1
        assert arrival.input_tokens + arrival.output_tokens <= context


def count(arrivals: list[Arrival], start_s: float, end_s: float) -> int:
    return sum(start_s <= a.t_s < end_s for a in arrivals)


def test_bursts_are_busier_by_their_ratio() -> None:
    arrivals = list(bursts(20.0, 3000.0, 3, on_s=10.0, off_s=20.0, ratio=8.0))
    on = sum(count(arrivals, start + 20.0, start + 30.0) for start in range(0, 3000, 30)) / 1000.0
    off = sum(count(arrivals, start, start + 20.0) for start in range(0, 3000, 30)) / 2000.0
    assert on / off == pytest.approx(8.0, rel=0.1)


def test_diurnal_is_quiet_at_the_ends_and_busy_in_the_middle() -> None:
    arrivals = list(diurnal(20.0, 1000.0, 3, depth=0.8))
    assert count(arrivals, 450.0, 550.0) > 5 * count(arrivals, 0.0, 50.0)


def test_steps_follow_their_levels() -> None:
    arrivals = list(steps(20.0, 400.0, 3, levels=(0.0, 1.0, 3.0, 0.0)))
    assert count(arrivals, 0.0, 100.0) == 0
    assert count(arrivals, 300.0, 400.0) == 0
    assert count(arrivals, 200.0, 300.0) / count(arrivals, 100.0, 200.0) == pytest.approx(3.0, rel=0.15)


def test_lengths_have_the_quantiles_asked_for() -> None:
    lengths = Lengths(
        input_median=100, input_p99=400, output_median=20, output_p99=60, context_tokens=100_000
    )
    arrivals = list(generate("poisson", 100.0, 300.0, 5, lengths))
    inputs = statistics.quantiles([a.input_tokens for a in arrivals], n=100)
    outputs = statistics.quantiles([a.output_tokens for a in arrivals], n=100)
    assert inputs[49] == pytest.approx(100, rel=0.05)
    assert inputs[98] == pytest.approx(400, rel=0.1)
    assert outputs[49] == pytest.approx(20, rel=0.06)
    assert outputs[98] == pytest.approx(60, rel=0.1)


def test_an_unknown_workload_is_refused_with_the_known_names() -> None:
    with pytest.raises(ConfigurationError, match=r"Unknown workload 'waves'\. Choose poisson, bursts"):
        generate("waves", 1.0, 1.0, 0)


@pytest.mark.parametrize(
    ("rate", "duration", "message"),
    [(0.0, 1.0, "rate"), (-1.0, 1.0, "rate"), (float("inf"), 1.0, "rate"), (1.0, 0.0, "duration")],
)
@pytest.mark.parametrize("name", NAMES)
def test_senseless_rates_and_durations_are_refused_at_the_call(
    name: str, rate: float, duration: float, message: str
) -> None:
    with pytest.raises(ConfigurationError, match=f"{message}|above 0"):
        generate(name, rate, duration, 0)


def test_senseless_shapes_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="ratio"):
        bursts(1.0, 1.0, 0, ratio=0.5)
    with pytest.raises(ConfigurationError, match=r"depth must be in 0\.\.1"):
        diurnal(1.0, 1.0, 0, depth=1.5)
    with pytest.raises(ConfigurationError, match="period_s"):
        diurnal(1.0, 1.0, 0, period_s=0.0)
    with pytest.raises(ConfigurationError, match="levels"):
        steps(1.0, 1.0, 0, levels=())


def test_senseless_lengths_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="input lengths need 1 <= median <= p99, not 10 and 5"):
        Lengths(input_median=10, input_p99=5)
    with pytest.raises(ConfigurationError, match="output lengths"):
        Lengths(output_median=0.5)
    with pytest.raises(ConfigurationError, match="context_tokens must be at least 2"):
        Lengths(context_tokens=1)
