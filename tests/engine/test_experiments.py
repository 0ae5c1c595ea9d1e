"""The library's requests are measured like a server's: by blocks, and by what their callers report."""

from __future__ import annotations

from typing import Any

import pytest

from loadwise import OptimizationConfig, ServerSideOptimizer
from loadwise.gateway.serving import OptimizationMiddleware, OptimizationServingMixin
from loadwise.testing import FakeClock

BLOCKS = {"block_share": 0.5, "block_sec": 10.0, "burn_in_sec": 0.0, "conversation_share": 0.0}


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def optimizer(clock: FakeClock) -> ServerSideOptimizer:
    made = ServerSideOptimizer(
        optimization_config=OptimizationConfig(
            experiment=BLOCKS, ensemble_strategy="best_of_n", ceilings={"max_tokens": 64}
        ),
        sinks=[],
        clock=clock,
    )
    made.ensemble_manager.add_model_to_ensemble("quick", "quick", quality=0.9)
    made.ensemble_manager.add_model_to_ensemble("best", "best", quality=1.0)
    made.director.running = True
    return made


async def test_the_gain_of_a_library_is_measured(optimizer: ServerSideOptimizer, clock: FakeClock) -> None:
    """Unoptimised requests take longer than `alert_latency_ms`, the one objective of a whole latency."""
    assert optimizer.export_performance_report()["performance_improvement"] is None
    for number in range(2000):
        clock.advance(0.2)
        context: dict[str, Any] = {"model_name": "auto", "request_id": str(number)}
        await optimizer.optimize_model_for_request("original", context)
        slow = "left_alone" in context
        optimizer.record_request_performance(context["selected_model"], 900.0 if slow else 90.0, True)
    report = optimizer.export_performance_report()
    assert report["performance_improvement"] == pytest.approx(1.0, abs=0.01)
    assert report["improvement"]["latency_ratios"]["whole_latency"]["value"] == pytest.approx(0.1)
    assert report["improvement"]["latency_ratios"]["time_to_first_token"] is None


async def test_a_request_left_alone_gets_the_default_member_and_only_ceilings(
    optimizer: ServerSideOptimizer, clock: FakeClock
) -> None:
    middleware = OptimizationMiddleware(OptimizationServingMixin(optimizer=optimizer), clock)
    kinds = set()
    await optimizer.start_optimization()
    for _ in range(100):
        clock.advance(1.0)
        alone = optimizer.recorder.experiments.leaves_alone(clock.monotonic_s())
        request = {"messages": [], "max_tokens": 900}
        model, sent = await middleware.process_request("m", request, lambda *given: given)
        kinds.add(alone)
        assert sent["max_tokens"] == 64
        if alone:
            assert model == "best"
            assert set(sent) == set(request)
        else:
            assert set(sent) > set(request)
    await optimizer.close()
    assert kinds == {True, False}
