"""The origin's serving layer, used as its examples show it."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from aphrodite.endpoints.openai.serving_optimization import (
    OptimizationMiddleware,
    OptimizationServingMixin,
    create_optimized_request_context,
    setup_optimization_serving,
)
from aphrodite.engine.server_side_optimizer import OptimizationConfig, ServerSideOptimizer
from loadwise.decision.facts import Policy, StrategyName
from loadwise.errors import LoadwiseError, RequestError
from loadwise.gateway.tuning import tuned
from loadwise.testing.clock import FakeClock

BASE = "/v1/optimization"
TABLE = {"max_tokens": 512, "temperature": 0.7, "top_k": 40}


class RecordingOptimizer:
    """An optimizer that answers as told and keeps what it is told."""

    def __init__(self, clock: FakeClock | None = None, failing: bool = False) -> None:
        self.clock = clock or FakeClock()
        self.failing = failing
        self.contexts: list[dict[str, Any]] = []
        self.records: list[tuple[str, float, bool]] = []
        self.survived: list[str] = []

    tuning_policy = Policy()

    @property
    def cycle(self) -> Any:
        return SimpleNamespace(survived=self.survived.append)

    @property
    def parameter_tuner(self) -> Any:
        strategy = SimpleNamespace(name=StrategyName.PERFORMANCE, parameters=TABLE)
        return SimpleNamespace(get_current_strategy=lambda: strategy)

    async def optimize_model_for_request(self, model: Any, request_context: Any) -> Any:
        self.contexts.append(request_context)
        if self.failing:
            raise RuntimeError("the optimizer is broken")
        request_context["selected_model"] = "fast"
        return ("optimized", model)

    def record_request_performance(self, model_id: str, latency_ms: float, success: bool) -> None:
        self.records.append((model_id, latency_ms, success))
        if self.failing:
            raise RuntimeError("the optimizer is broken")


def middleware_over(optimizer: Any, clock: FakeClock | None = None) -> OptimizationMiddleware:
    return OptimizationMiddleware(OptimizationServingMixin(optimizer=optimizer), clock=clock or FakeClock())


def chat(**fields: Any) -> dict[str, Any]:
    return {"model": "auto", "messages": [{"role": "user", "content": "hi"}], **fields}


class TestRequestContext:
    def test_the_origins_example(self):
        context = create_optimized_request_context(
            model_name="llama-3.1-8b",
            request_id="req_123",
            user_preferences={"quality": "high", "speed": "medium"},
            load_info={"current_load": 0.7},
        )
        assert context["model_name"] == "llama-3.1-8b"
        assert context["request_id"] == "req_123"
        assert context["user_preferences"] == {"quality": "high", "speed": "medium"}
        assert (context["quality_preference"], context["speed_preference"]) == (1.0, 0.5)
        assert context["load_info"] == {"current_load": 0.7}

    def test_preferences_may_be_left_out(self):
        context = create_optimized_request_context(model_name="m", request_id="r")
        assert context["user_preferences"] == {}
        assert context["quality_preference"] is None

    def test_a_wrong_preference_is_named(self):
        with pytest.raises(LoadwiseError, match="quality is low, medium, high"):
            create_optimized_request_context("m", "r", user_preferences={"quality": "superb"})


class TestMiddleware:
    async def test_a_request_is_optimised_tuned_and_recorded(self):
        clock = FakeClock()
        optimizer = RecordingOptimizer()
        request = chat()

        async def process(model: Any, data: Any) -> Any:
            clock.advance(0.12)
            return model, data

        model, data = await middleware_over(optimizer, clock).process_request("original", request, process)
        assert model == ("optimized", "original")
        assert {name: data[name] for name in TABLE} == TABLE
        assert request == chat()
        assert optimizer.records == [("fast", pytest.approx(120.0), True)]
        assert optimizer.contexts[0]["model_name"] == "auto"

    async def test_a_processing_function_may_be_synchronous(self):
        middleware = middleware_over(RecordingOptimizer())
        result = await middleware.process_request("m", chat(), lambda model, data: data)
        assert result["max_tokens"] == 512

    async def test_explicit_values_win(self):
        request = chat(max_tokens=9, temperature=0.0)
        middleware = middleware_over(RecordingOptimizer())
        result = await middleware.process_request("m", request, lambda model, data: data)
        assert (result["max_tokens"], result["temperature"], result["top_k"]) == (9, 0.0, 40)

    async def test_when_the_optimizer_fails_serving_goes_on_with_the_original(self, caplog):
        optimizer = RecordingOptimizer(failing=True)
        request = chat()
        middleware = middleware_over(optimizer)
        model, data = await middleware.process_request("original", request, lambda m, d: (m, d))
        assert (model, data) == ("original", request)
        assert "goes_on_without_it" in caplog.text
        assert len(optimizer.records) == 1
        # The choice failed, and the record of the outcome.
        assert optimizer.survived == ["middleware", "middleware"]

    async def test_a_failure_is_recorded_and_raised(self):
        optimizer = RecordingOptimizer()

        async def process(model: Any, data: Any) -> Any:
            raise ValueError("no such luck")

        with pytest.raises(ValueError, match="no such luck"):
            await middleware_over(optimizer).process_request("m", chat(), process)
        assert [success for _, _, success in optimizer.records] == [False]

    async def test_a_cancelled_request_says_nothing_about_the_model(self):
        optimizer = RecordingOptimizer()
        began = asyncio.Event()

        async def process(model: Any, data: Any) -> Any:
            began.set()
            await asyncio.Event().wait()

        task = asyncio.create_task(middleware_over(optimizer).process_request("m", chat(), process))
        await began.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert optimizer.records == []

    async def test_without_an_optimizer_nothing_changes(self):
        middleware = OptimizationMiddleware(OptimizationServingMixin())
        assert await middleware.process_request("m", chat(), lambda m, d: (m, d)) == ("m", chat())

    @pytest.mark.parametrize(
        ("request_data", "added"),
        [
            (chat(tools=[{"type": "function"}]), {"temperature", "top_k"}),
            (chat(response_format={"type": "json_object"}), {"temperature", "top_k"}),
            (chat(n=2), {"temperature", "top_k"}),
            (chat(max_completion_tokens=5), {"temperature", "top_k"}),
            ({"prompt": "a completion keeps its default length"}, {"temperature", "top_k"}),
            (chat(), {"max_tokens", "temperature", "top_k"}),
        ],
    )
    def test_answers_are_shortened_only_where_it_does_no_harm(self, request_data, added):
        strategy = SimpleNamespace(name=StrategyName.PERFORMANCE, parameters=TABLE)
        assert set(tuned(request_data, strategy, Policy())) - set(request_data) == added

    @pytest.mark.parametrize("request_data", ["a string", None, 3])
    def test_what_is_no_mapping_stays_as_it_is(self, request_data):
        assert tuned(request_data, SimpleNamespace(parameters=TABLE), Policy()) is request_data

    @pytest.mark.parametrize("stopped", [True, False])
    async def test_stopped_or_without_dynamic_tuning_requests_stay_as_they_are(self, stopped):
        config = OptimizationConfig(enable_dynamic_tuning=stopped)
        optimizer = ServerSideOptimizer(optimization_config=config, sinks=[])
        await optimizer.start_optimization()
        if stopped:
            await optimizer.stop_optimization()
        answer = await middleware_over(optimizer).process_request("m", chat(), lambda _, data: data)
        await optimizer.close()
        assert answer == chat()

    async def test_an_operators_ceiling_holds_for_explicit_values(self):
        optimizer = ServerSideOptimizer(
            optimization_config=OptimizationConfig(ceilings={"max_tokens": 64}), sinks=[]
        )
        await optimizer.start_optimization()
        request = chat(max_tokens=900)
        answer = await middleware_over(optimizer).process_request("m", request, lambda _, data: data)
        await optimizer.close()
        assert answer["max_tokens"] == 64


class TestMixin:
    async def test_a_bare_mixin_says_how_to_set_it_up(self):
        with pytest.raises(RequestError, match="setup_optimization_serving"):
            await OptimizationServingMixin().get_optimization_status()

    def test_it_can_be_mixed_into_a_serving_class(self):
        class Serving(OptimizationServingMixin):
            def __init__(self) -> None:
                self.name = "serving"

        assert Serving().control is None


class TestMigration:
    async def test_the_origins_guide_works_against_the_real_optimizer(self):
        optimizer = ServerSideOptimizer(None, None, OptimizationConfig(enable_torch_compile=False))
        await optimizer.start_optimization()
        try:
            middleware = OptimizationMiddleware(OptimizationServingMixin(optimizer=optimizer))
            result = await middleware.process_request(len, chat(), lambda m, data: m(data["messages"]))
        finally:
            await optimizer.stop_optimization()
        assert result == 1
        assert optimizer.export_performance_report()["total_requests"] == 1


class TestSetup:
    @pytest.fixture
    async def served(self):
        app = FastAPI()
        mixin = await setup_optimization_serving(app, SimpleNamespace())
        try:
            yield app, mixin
        finally:
            await mixin.stop_optimization()

    async def test_it_returns_the_mixin_that_the_middleware_takes(self, served):
        _, mixin = served
        assert isinstance(mixin, OptimizationServingMixin)
        middleware = OptimizationMiddleware(mixin)
        assert await middleware.process_request("m", chat(), lambda model, data: model) == "m"

    @pytest.mark.parametrize("view", ["status", "metrics", "ensemble", "report", "dashboard"])
    async def test_every_view_is_served(self, served, view):
        app, _ = served
        answer = await asyncio.to_thread(lambda: TestClient(app).get(f"{BASE}/{view}"))
        assert answer.status_code == 200

    @pytest.mark.parametrize("command", ["start", "stop", "configure", "force_recompile"])
    async def test_changes_over_http_need_an_admin_key(self, served, command):
        app, _ = served
        answer = await asyncio.to_thread(lambda: TestClient(app).post(f"{BASE}/{command}", json={}))
        assert answer.status_code == 403
        assert "admin_key" in answer.json()["error"]["message"]
