"""The search for what a model sustains ends near the truth, and says when it found no limit."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loadwise.bench.capacity import find_capacity
from loadwise.bench.summary import Summary, summarize
from loadwise.decision.facts import Objectives


def at(rate_per_s: float, within_fraction: float) -> Summary:
    empty = summarize("m", [], 10.0, Objectives(), {})
    requests = round(rate_per_s * 10 * 100)
    values = {**empty.as_json(), "requests": requests, "within_objectives": round(within_fraction * requests)}
    return Summary(**values)


@settings(max_examples=50, deadline=None)
@given(truth=st.floats(0.05, 2000.0), start=st.floats(0.1, 50.0))
async def test_the_sustained_rate_is_found_to_the_tolerance(truth: float, start: float) -> None:
    async def at_rate(rate_per_s: float) -> list[Summary]:
        return [at(rate_per_s, 1.0 if rate_per_s <= truth else 0.5)]

    capacity = await find_capacity(at_rate, start_per_s=start, tolerance=0.1)
    assert capacity.sustained_per_s <= truth < (capacity.failed_per_s or 0.0)
    assert (capacity.failed_per_s or 0.0) / capacity.sustained_per_s <= 1.1
    assert len(capacity.probes) < 30


async def test_a_model_that_meets_nothing_sustains_nothing() -> None:
    async def at_rate(rate_per_s: float) -> list[Summary]:
        return [at(rate_per_s, 0.0)]

    capacity = await find_capacity(at_rate, start_per_s=1.0, floor_per_s=0.1)
    assert capacity.sustained_per_s == 0.0
    assert not any(probe.sustained for probe in capacity.probes)


async def test_a_limit_that_was_not_reached_is_not_invented() -> None:
    async def at_rate(rate_per_s: float) -> list[Summary]:
        return [at(rate_per_s, 1.0)]

    capacity = await find_capacity(at_rate, start_per_s=1.0, limit_per_s=10.0)
    assert capacity.sustained_per_s == 8.0
    assert capacity.failed_per_s is None


async def test_several_runs_at_one_rate_are_counted_together() -> None:
    async def at_rate(rate_per_s: float) -> list[Summary]:
        # 19 of 20 requests in all: just enough.
        return [at(rate_per_s, 1.0), at(rate_per_s, 0.9)]

    capacity = await find_capacity(at_rate, start_per_s=1.0, limit_per_s=1.0)
    assert capacity.probes[0].within_fraction == pytest.approx(0.95)
    assert capacity.probes[0].sustained
    assert capacity.probes[0].offered_per_s == pytest.approx(100.0)
