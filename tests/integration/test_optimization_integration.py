"""Whole workflows: from a request to its record, through load, faults and change of configuration."""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import time
from collections.abc import Callable

import pytest
import torch

from aphrodite.endpoints.openai.serving_optimization import (
    OptimizationMiddleware,
    OptimizationServingMixin,
    create_optimized_request_context,
)
from aphrodite.engine.server_side_optimizer import (
    ModelCompiler,
    ModelEnsembleManager,
    OptimizationConfig,
    ServerSideOptimizer,
)
from loadwise.decision.facts import StrategyName
from loadwise.errors import BuildDeclinedError, BuildError
from loadwise.optimizer.control import OptimizationControl
from loadwise.ports import Configure, Recompile, View

QUIET_SECONDS = 30


class Heard:
    def __init__(self) -> None:
        self.alerts: list[str] = []

    def deliver(self, alert) -> None:  # type: ignore[no-untyped-def]
        self.alerts.append(f"{alert.name}{' ended' if alert.resolved else ''}")


@pytest.fixture
def heard() -> Heard:
    return Heard()


@pytest.fixture
def optimizer(engine, host, clock, backend, heard) -> ServerSideOptimizer:  # type: ignore[no-untyped-def]
    return ServerSideOptimizer(
        engine,
        {"model": "small"},
        OptimizationConfig(experiment={"block_share": 0.0, "conversation_share": 0.0}),
        host=host,
        clock=clock,
        sinks=[heard],
        random=random.Random(5),
        model_compiler=ModelCompiler(OptimizationConfig(), backend=backend, automatic=False),
    )


class TestWorkflow:
    async def test_the_migration_guides_request_is_optimised_answered_and_recorded(
        self, optimizer, model, batch
    ) -> None:
        await optimizer.start_optimization()

        async def process_request(name: str, request_id: str) -> torch.Tensor:
            context = create_optimized_request_context(model_name=name, request_id=request_id)
            optimized_model = await optimizer.optimize_model_for_request(model, context)
            with torch.no_grad():
                result = optimized_model(batch)
            optimizer.record_request_performance(name, 42.0, True)
            return result

        with torch.no_grad():
            expected = model(batch)
        for number in range(5):
            assert torch.equal(await process_request("small", f"req-{number}"), expected)
        report = optimizer.export_performance_report()
        status = optimizer.get_optimization_status()
        await optimizer.close()
        assert report["total_requests"] == 5
        assert report["grade"] == "A+"
        assert [entry["model"] for entry in report["performance_history"]] == ["small"] * 5
        assert "small" in status["compilation_stats"]

    async def test_builds_are_made_in_quiet_moments_served_and_rebuilt_on_demand(
        self, optimizer, engine, clock, model, batch, backend
    ) -> None:
        engine.running, engine.waiting = 8, 8
        await optimizer.start_optimization()
        served = await optimizer.optimize_model_for_request(model, {"model_name": "small"})
        with torch.no_grad():
            expected = served(batch)
        clock.advance(QUIET_SECONDS)
        await optimizer.cycle.tune()
        assert backend.builds == []
        engine.running, engine.waiting = 0, 0
        for _ in range(8):
            clock.advance(QUIET_SECONDS)
            await optimizer.cycle.tune()
            await asyncio.to_thread(optimizer.model_compiler.wait, 60)
        assert ("small", "default") in backend.builds
        with torch.no_grad():
            assert torch.allclose(served(batch), expected, atol=1e-5)
        before = len(backend.builds)
        answer = await OptimizationControl(optimizer).apply(Recompile(model_id="small"))
        await asyncio.to_thread(optimizer.model_compiler.wait, 60)
        await optimizer.close()
        assert answer["models"] == ["small"]
        assert len(backend.builds) == before + 1

    async def test_the_middleware_gives_a_member_and_records_it(self, optimizer, clock) -> None:
        optimizer.ensemble_manager.add_model_to_ensemble("fast_model", "fast weights", quality=0.5)
        await optimizer.start_optimization()
        middleware = OptimizationMiddleware(OptimizationServingMixin(optimizer=optimizer), clock=clock)

        async def your_processing_function(model, request_data):  # type: ignore[no-untyped-def]
            clock.advance(0.25)
            return model, request_data

        model, _ = await middleware.process_request(
            "original", {"model": "llama", "messages": []}, your_processing_function
        )
        await optimizer.close()
        assert model == "fast weights"
        status = optimizer.ensemble_manager.get_ensemble_status()["models"][0]
        assert (status["outcomes"], status["error_rate"]) == (1, 0.0)
        assert status["avg_latency_ms"] == pytest.approx(250.0)

    async def test_a_configuration_change_is_seen_everywhere_at_once(self, optimizer) -> None:
        control = OptimizationControl(optimizer)
        await control.apply(
            Configure(
                changes={"compile_mode": "max-autotune", "max_ensemble_size": 1, "metrics_history_size": 3}
            )
        )
        for _ in range(9):
            optimizer.record_request_performance("m", 10.0, True)
        status = await control.read(View.STATUS)
        report = await control.read(View.REPORT)
        assert (
            status["config"]["compile_mode"] == optimizer.model_compiler.config.compile_mode == "max-autotune"
        )
        assert status["config_version"] == 2
        assert len(report["performance_history"]) == 3
        assert optimizer.ensemble_manager.config.max_ensemble_size == 1


class TestLoadSimulation:
    async def run(self, optimizer, clock, seconds: int, load: Callable[[int], None]) -> list[StrategyName]:  # type: ignore[no-untyped-def]
        """One probe a second, a whole turn every half minute, of simulated time."""
        seen = []
        for second in range(seconds):
            clock.advance(1.0)
            load(second)
            await (optimizer.cycle.tune() if second % 30 == 0 else optimizer.cycle.probe())
            seen.append(optimizer.parameter_tuner.get_current_strategy().name)
        return seen

    @pytest.mark.parametrize("cpu", [5.0, 30.0, 55.0, 80.0, 95.0])
    async def test_an_hour_of_constant_load_with_noise_changes_the_strategy_at_most_once(
        self, optimizer, clock, engine, host, cpu: float
    ) -> None:
        chance = random.Random(1)
        engine.running = round(8 * cpu / 100)

        def noisy(_: int) -> None:
            host.cpu = min(100.0, cpu * chance.uniform(0.9, 1.1))

        seen = await self.run(optimizer, clock, 3600, noisy)
        assert sum(a is not b for a, b in itertools.pairwise(seen)) <= 1

    async def test_a_jump_in_load_is_followed_within_seconds_and_its_end_too(
        self, optimizer, clock, engine, host
    ) -> None:
        def steps(second: int) -> None:
            busy = 300 <= second < 600
            engine.running, engine.waiting, host.cpu = (8, 8, 99.0) if busy else (0, 0, 5.0)

        seen = await self.run(optimizer, clock, 900, steps)
        assert seen[299] is StrategyName.QUALITY
        assert StrategyName.PERFORMANCE in seen[300:312]
        assert seen[599] is StrategyName.PERFORMANCE
        assert StrategyName.QUALITY in seen[600:632]

    async def test_parameters_shrink_as_load_rises_and_never_leave_their_bounds(
        self, optimizer, clock, engine, host
    ) -> None:
        limits = []

        def rising(second: int) -> None:
            engine.running = min(8, second // 100)
            engine.waiting = max(0, second // 100 - 8)
            host.cpu = min(100.0, second / 12)
            strategy = optimizer.parameter_tuner.get_current_strategy()
            if strategy is not None:
                limits.append(strategy.parameters["max_tokens"])

        await self.run(optimizer, clock, 1500, rising)
        assert limits[0] == 2048
        assert limits[-1] == 512
        assert all(512 <= limit <= 2048 for limit in limits)

    @pytest.mark.parametrize("strategy", ["weighted_voting", "adaptive"])
    def test_the_ensemble_moves_away_from_a_member_that_slows_down_and_back_when_it_recovers(
        self, clock, strategy: str
    ) -> None:
        ensemble = ModelEnsembleManager(
            OptimizationConfig(ensemble_strategy=strategy), clock=clock, random=random.Random(2)
        )
        for name in ("left", "right"):
            ensemble.add_model_to_ensemble(name, name, quality=0.7)
        slow: set[str] = set()

        def share_of_left(requests: int) -> float:
            chosen = []
            for _ in range(requests):
                clock.advance(1.0)
                name = ensemble.select_model_for_request({}).model_id
                first, total = (900.0, 2500.0) if name in slow else (50.0, 350.0)
                ensemble.update_model_performance(
                    name, total, True, output_tokens=30, prompt_tokens=40, time_to_first_token_ms=first
                )
                chosen.append(name)
            return chosen[-200:].count("left") / 200

        share_of_left(200)
        slow.add("left")
        assert share_of_left(600) < 0.1
        slow.clear()
        slow.add("right")
        assert share_of_left(1500) > 0.9


class TestErrorConditions:
    async def test_a_compilation_failure_falls_back_alerts_and_recovers(
        self, optimizer, clock, model, batch, backend, heard
    ) -> None:
        backend.fault = BuildError("g++ died", remedy="Install g++.")
        await optimizer.start_optimization()
        served = await optimizer.optimize_model_for_request(model, {"model_name": "small"})
        with torch.no_grad():
            expected = served(batch)
        for _ in range(4):
            clock.advance(QUIET_SECONDS)
            await optimizer.cycle.tune()
            await asyncio.to_thread(optimizer.model_compiler.wait, 60)
        with torch.no_grad():
            assert torch.equal(served(batch), expected)
        assert "compilation_failure" in heard.alerts
        assert optimizer.get_optimization_status()["compilation_stats"]["small"]["cause"] == "g++ died"
        backend.fault = None
        optimizer.model_compiler.force_recompile("small")
        await asyncio.to_thread(optimizer.model_compiler.wait, 60)
        await optimizer.close()
        assert optimizer.get_optimization_status()["compilation_stats"]["small"]["state"] == "promoted"

    async def test_a_failure_of_one_mode_alerts_also_while_another_mode_serves(
        self, optimizer, clock, model, batch, backend, heard
    ) -> None:
        await optimizer.start_optimization()
        served = await optimizer.optimize_model_for_request(model, {"model_name": "small"})
        compiler = optimizer.model_compiler
        with torch.no_grad():
            served(batch)
        for mode, fault in (("default", None), ("max-autotune", BuildError("g++ died"))):
            backend.fault = fault
            compiler.build("small", mode)
            await asyncio.to_thread(compiler.wait, 60)
        for _ in range(2):
            await optimizer.cycle.tune()
        await optimizer.close()
        assert compiler.compilation_stats["small"]["state"] == "promoted"
        assert "compilation_failure" in heard.alerts

    async def test_a_build_that_is_not_faster_is_no_failure(
        self, optimizer, model, batch, backend, heard
    ) -> None:
        backend.fault = BuildDeclinedError("The build is not faster.")
        await optimizer.start_optimization()
        served = await optimizer.optimize_model_for_request(model, {"model_name": "small"})
        with torch.no_grad():
            served(batch)
        optimizer.model_compiler.build("small")
        await asyncio.to_thread(optimizer.model_compiler.wait, 60)
        for _ in range(2):
            await optimizer.cycle.tune()
        await optimizer.close()
        assert "not faster" in optimizer.get_optimization_status()["compilation_stats"]["small"]["cause"]
        assert heard.alerts == []

    async def test_a_failing_member_is_removed_and_the_answers_go_on(self, optimizer, heard, clock) -> None:
        for name in ("sound", "broken"):
            optimizer.ensemble_manager.add_model_to_ensemble(name, name)
        await optimizer.start_optimization()
        served = []
        for number in range(200):
            clock.advance(0.5)
            context = create_optimized_request_context(model_name="auto", request_id=str(number))
            model = await optimizer.optimize_model_for_request("original", context)
            optimizer.record_request_performance(context["selected_model"], 50.0, model != "broken")
            served.append(model)
        for _ in range(30):
            clock.advance(1.0)
            optimizer.watch.evaluate()
        await optimizer.close()
        assert served[-50:].count("sound") >= 48
        assert optimizer.ensemble_manager.members_out() == ["broken"]
        assert "ensemble_degradation" in heard.alerts

    async def test_when_monitoring_fails_optimisation_goes_on_with_what_it_has(
        self, optimizer, engine, clock
    ) -> None:
        engine.running = 4
        await optimizer.start_optimization()

        def broken() -> None:
            raise ConnectionError("the engine hung up")

        engine.reading = broken
        optimizer.cycle.parts.client = lambda: engine.reading()
        clock.advance(5.0)
        await optimizer.cycle.tune()
        status = optimizer.get_optimization_status()
        assert status["engines"]["engine"]["running_requests"] == 4
        assert "hung up" in status["loop"]["faults"]["engine_client"]
        assert status["system_status"] == "degraded"
        clock.advance(40.0)
        await optimizer.cycle.tune()
        assert "active_requests" not in status["absent"]
        assert "capacity_requests" in optimizer.get_optimization_status()["absent"]
        await optimizer.close()

    async def test_the_status_never_holds_what_json_cannot(self, optimizer, engine, host) -> None:
        host.cpu = float("nan")
        engine.reading = lambda: None
        await optimizer.start_optimization()
        optimizer.record_request_performance("m", 0.0, False)
        for made in (optimizer.get_optimization_status(), optimizer.export_performance_report()):
            assert json.dumps(made, allow_nan=False)
        await optimizer.close()


def best_of(action: Callable[[], object], *, repeats: int = 7, runs: int = 30) -> float:
    """Seconds of the fastest of several runs: what the code costs when nothing disturbs it."""
    taken = []
    for _ in range(repeats):
        started = time.perf_counter()
        for _ in range(runs):
            action()
        taken.append(time.perf_counter() - started)
    return min(taken)


class TestPerformanceRegressions:
    """Ratios of costs measured side by side; what a machine can do in a second plays no part."""

    def ensemble(self, members: int) -> ModelEnsembleManager:
        made = ModelEnsembleManager(OptimizationConfig(max_ensemble_size=members), random=random.Random(1))
        for number in range(members):
            made.add_model_to_ensemble(f"m{number}", object(), quality=number / members)
        return made

    def test_selecting_among_twenty_members_costs_at_most_linearly_more_than_among_two(self) -> None:
        few, many = self.ensemble(2), self.ensemble(20)
        ratio = best_of(lambda: many.select_model_for_request({})) / best_of(
            lambda: few.select_model_for_request({})
        )
        assert ratio < 15.0

    def test_recording_costs_the_same_however_long_the_history_is(self) -> None:
        def recorder(size: int) -> ServerSideOptimizer:
            made = ServerSideOptimizer(
                optimization_config=OptimizationConfig(metrics_history_size=size), sinks=[]
            )
            for _ in range(min(size, 20_000)):
                made.record_request_performance("m", 10.0, True)
            return made

        short, long = recorder(10), recorder(20_000)
        ratio = best_of(lambda: long.record_request_performance("m", 10.0, True)) / best_of(
            lambda: short.record_request_performance("m", 10.0, True)
        )
        assert ratio < 3.0

    async def test_selecting_costs_little_beside_the_smallest_model(self, optimizer, model, batch) -> None:
        ensemble = self.ensemble(3)
        select = best_of(lambda: ensemble.select_model_for_request({}))
        with torch.no_grad():
            answer = best_of(lambda: model(batch), runs=10) * 3
        assert select < answer

    def test_the_promoted_build_is_not_slower_than_the_original(self, model, batch, backend) -> None:
        compiler = ModelCompiler(OptimizationConfig(), backend=backend)
        served = compiler.compile_model(model, "m")
        with torch.no_grad():
            served(batch)
            assert compiler.wait(60)
            ratio = best_of(lambda: served(batch), runs=5) / best_of(lambda: model(batch), runs=5)
        compiler.close()
        assert ratio < 1.0
