"""The optimizer's classes as their description shows them, one by one."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
from collections import Counter

import pytest
import torch

from aphrodite.engine.server_side_optimizer import (
    DynamicModelManager,
    LoadBasedParameterTuner,
    ModelCompiler,
    ModelEnsembleManager,
    OptimizationConfig,
    ServerLoadMetrics,
    ServerSideOptimizer,
)
from loadwise.errors import BuildError, CapacityError, ConfigurationError, UnknownNameError
from loadwise.testing import FakeEngine
from loadwise.testing.logs import events

QUIET = ServerLoadMetrics(
    cpu_usage_percent=5.0, memory_usage_percent=20.0, gpu_utilization=None, active_requests=0,
    queue_depth=0, throughput_tokens_per_sec=0.0, avg_latency_ms=50.0, error_rate=0.0,
)  # fmt: skip
BUSY = ServerLoadMetrics(
    cpu_usage_percent=99.0, memory_usage_percent=97.0, gpu_utilization=99.0, active_requests=64,
    queue_depth=64, throughput_tokens_per_sec=5.0, avg_latency_ms=9000.0, error_rate=0.3,
)  # fmt: skip


def optimizer(**parts) -> ServerSideOptimizer:  # type: ignore[no-untyped-def]
    config = parts.pop("optimization_config", OptimizationConfig(tuning_interval_sec=0.05))
    # Which requests an experiment leaves alone is for chance to say.
    config = config.changed({"experiment": {"block_share": 0.0, "conversation_share": 0.0}})
    return ServerSideOptimizer(optimization_config=config, sinks=[], **parts)


class TestImports:
    def test_importing_the_package_and_its_classes_needs_no_torch(self) -> None:
        code = (
            "import sys, loadwise; assert not any(m.startswith('pydantic') for m in sys.modules)\n"
            "import aphrodite.engine.server_side_optimizer\n"
            "assert 'torch' not in sys.modules and 'fastapi' not in sys.modules"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr

    def test_the_package_shows_its_public_names_and_no_others(self) -> None:
        import loadwise

        assert loadwise.ServerSideOptimizer is ServerSideOptimizer
        assert "ModelEnsembleManager" in dir(loadwise)
        with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
            _ = loadwise.Nothing


class TestOptimizationConfig:
    def test_it_takes_what_the_examples_give_it(self) -> None:
        config = OptimizationConfig(
            enable_torch_compile=True,
            enable_dynamic_tuning=True,
            enable_ensemble=True,
            tuning_interval_sec=30.0,
            max_ensemble_size=3,
        )
        assert config == OptimizationConfig()
        production = OptimizationConfig(
            enable_torch_compile=True, compile_mode="default", enable_dynamic_tuning=True,
            tuning_interval_sec=60.0, load_threshold_high=0.85, load_threshold_low=0.25,
            enable_ensemble=True, max_ensemble_size=2, ensemble_strategy="weighted_voting",
        )  # fmt: skip
        assert production.load_threshold_high == 0.85
        performance = OptimizationConfig(
            compile_mode="max-autotune", tuning_interval_sec=15.0, max_ensemble_size=5,
            ensemble_strategy="adaptive",
        )  # fmt: skip
        assert performance.ensemble_strategy == "adaptive"

    @pytest.mark.parametrize(
        "wrong",
        [
            {"compile_mode": "fast"},
            {"load_threshold_low": 0.9},
            {"max_ensemble_size": 0},
            {"tuning_interval_sec": 0.0},
            {"ensemble_strategy": "best"},
        ],
    )
    def test_wrong_values_are_value_errors_that_name_the_field(self, wrong: dict[str, object]) -> None:
        with pytest.raises(ValueError, match=next(iter(wrong))):
            OptimizationConfig(**wrong)


class TestServerLoadMetrics:
    def test_the_score_lies_in_its_range_and_grows_with_load(self) -> None:
        quiet, busy = QUIET.overall_load_score, BUSY.overall_load_score
        assert quiet is not None
        assert busy is not None
        assert 0.0 <= quiet < 0.3 < 0.8 < busy <= 1.0

    def test_what_is_absent_is_named_and_never_zero(self) -> None:
        assert QUIET.gpu_utilization is None
        assert "gpu_utilization" in QUIET.absent
        assert ServerLoadMetrics().overall_load_score is None


class TestServerSideOptimizer:
    async def test_it_starts_and_stops_as_often_as_it_is_asked(self) -> None:
        made = optimizer()
        assert made.get_optimization_status()["system_status"] == "starting"
        await made.start_optimization()
        await made.start_optimization()
        assert made.loop.running
        assert made.get_optimization_status()["running"] is True
        await made.stop_optimization()
        await made.stop_optimization()
        assert not made.loop.running
        assert made.get_optimization_status()["system_status"] == "bypassed"

    async def test_a_stop_during_the_start_leaves_it_stopped(self) -> None:
        made = optimizer()
        await asyncio.gather(made.start_optimization(), made.stop_optimization())
        assert not made.loop.running
        assert made.get_optimization_status()["running"] is False

    async def test_stopping_ends_the_builds_that_run(self, model, batch, backend) -> None:
        started = threading.Event()

        def waiting(request):  # type: ignore[no-untyped-def]
            started.set()
            assert request.stop.wait(60)
            raise BuildError("stopped")

        backend.build = waiting
        compiler = ModelCompiler(backend=backend, automatic=False)
        made = optimizer(model_compiler=compiler)
        await made.start_optimization()
        served = await made.optimize_model_for_request(model, {"model_name": "m"})
        with torch.no_grad():
            served(batch)
        compiler.force_recompile("m")
        await asyncio.to_thread(started.wait, 60)
        await made.stop_optimization()
        assert await asyncio.to_thread(compiler.wait, 60)
        await made.close()
        assert compiler.compilation_stats["m"]["cause"] == "The build was stopped."

    async def test_the_loop_turns_at_its_interval(self) -> None:
        made = optimizer()
        turned = asyncio.Event()
        made.parameter_tuner.on_applied(lambda _: turned.set() if made.cycle.turns >= 3 else None)
        await made.start_optimization()
        async with asyncio.timeout(30):
            await turned.wait()
        await made.close()
        assert made.cycle.turns >= 3

    async def test_an_engine_that_offers_nothing_leaves_the_machines_own_figures(self) -> None:
        made = ServerSideOptimizer(engine_client=object(), model_config={"name": "m"})
        await made.start_optimization()
        status = made.get_optimization_status()
        await made.close()
        assert status["load"]["score"] is not None
        assert "queue_depth" in status["absent"]
        assert made.model_config == {"name": "m"}

    async def test_an_engine_with_readings_is_read(self, engine, host, clock) -> None:
        engine.running, engine.waiting = 8, 6
        made = optimizer(engine_client=engine, host=host, clock=clock)
        await made.start_optimization()
        metrics = made.parameter_tuner.collect_load_metrics()
        status = made.get_optimization_status()
        await made.close()
        assert (metrics.active_requests, metrics.queue_depth, metrics.capacity_requests) == (8, 6, 8)
        assert status["engines"]["engine"]["waiting_requests"] == 6
        assert status["current_strategy"] == "performance"

    async def test_an_engine_that_also_serves_is_asked_like_a_members(self, clock, host) -> None:
        engine = FakeEngine(model_id="m", capacity=4, clock=clock)
        made = optimizer(engine_client=engine, clock=clock, host=host)
        await made.start_optimization()
        status = made.get_optimization_status()
        metrics = made.parameter_tuner.collect_load_metrics()
        assert status["engines"]["engine"]["capacity_requests"] == 4
        assert (metrics.active_requests, metrics.capacity_requests) == (0, 4)

        async def broken() -> str:
            return "no reading at all"

        engine.observe = broken
        await made.cycle.tune()
        faults = made.get_optimization_status()["loop"]["faults"]
        await made.close()
        assert "observe:engine" in faults

    async def test_a_request_gets_its_model_back_with_the_same_answers(self, model, batch, backend) -> None:
        made = optimizer(model_compiler=ModelCompiler(backend=backend, automatic=False))
        await made.start_optimization()
        served = await made.optimize_model_for_request(model, {"model_name": "m", "request_id": "1"})
        again = await made.optimize_model_for_request(model, {"model_name": "m", "request_id": "2"})
        with torch.no_grad():
            assert torch.equal(served(batch), model(batch))
        await made.close()
        assert served is again

    async def test_a_request_gets_a_member_of_the_ensemble_and_the_context_names_it(self, model) -> None:
        made = optimizer(optimization_config=OptimizationConfig(enable_torch_compile=False))
        made.ensemble_manager.add_model_to_ensemble("fast_model", model, weight=1.0)
        await made.start_optimization()
        context = {"model_name": "llama-3.1-8b", "request_id": "req_123"}
        assert await made.optimize_model_for_request("original", context) is model
        assert context["selected_model"] == "fast_model"
        await made.stop_optimization()
        assert await made.optimize_model_for_request("original", context) == "original"

    async def test_a_context_that_makes_no_sense_leaves_the_model_and_is_told_but_is_no_fault(
        self, model, caplog
    ) -> None:
        made = optimizer()
        made.ensemble_manager.add_model_to_ensemble("fast_model", model)
        await made.start_optimization()
        wrong = {"user_preferences": {"quality": "enormous"}}
        assert await made.optimize_model_for_request(model, wrong) is model
        status = made.get_optimization_status()
        await made.close()
        (line,) = (
            fields for fields in events(caplog.records) if fields["event"] == "request_context_refused"
        )
        assert "enormous" in line["reason"]
        assert status["loop"]["faults"] == {}

    async def test_a_part_that_failed_for_one_request_is_healthy_with_the_next(self, model) -> None:
        class Breaking(ModelCompiler):
            broken = True

            def compile_model(self, model, model_id, **given):  # type: ignore[no-untyped-def]
                if self.broken:
                    raise RuntimeError("out of memory")
                return super().compile_model(model, model_id, **given)

        compiler = Breaking(automatic=False)
        made = optimizer(model_compiler=compiler)
        await made.start_optimization()
        assert await made.optimize_model_for_request(model, {"model_name": "m"}) is model
        assert (
            "out of memory" in made.get_optimization_status()["loop"]["faults"]["optimize_model_for_request"]
        )
        compiler.broken = False
        await made.optimize_model_for_request(model, {"model_name": "m"})
        assert made.get_optimization_status()["loop"]["faults"] == {}
        await made.close()

    async def test_what_is_recorded_under_the_name_asked_for_teaches_the_member_that_answered(
        self, model
    ) -> None:
        made = optimizer(optimization_config=OptimizationConfig(enable_torch_compile=False))
        for name in ("fast_model", "accurate_model"):
            made.ensemble_manager.add_model_to_ensemble(name, model)
        await made.start_optimization()

        async def request(number: int) -> str:
            context = {"model_name": "llama-3.1-8b", "request_id": f"req_{number}"}
            await made.optimize_model_for_request(model, context)
            await asyncio.sleep(0)
            made.record_request_performance("llama-3.1-8b", 100.0 + number, True)
            return context["selected_model"]

        # All at once: each request's outcome belongs to its own choice.
        answered = await asyncio.gather(*(request(number) for number in range(30)))
        models = made.ensemble_manager.get_ensemble_status()["models"]
        report = made.export_performance_report()
        await made.close()
        assert {m["model_id"]: m["outcomes"] for m in models} == Counter(answered)
        assert [entry["model"] for entry in report["performance_history"]] == answered

    def test_performance_is_recorded_by_name_or_by_model(self, model) -> None:
        made = optimizer()
        made.record_request_performance("some-model", 90.0, True)
        made.record_request_performance(model, latency_ms=110.0, success=True)
        report = made.export_performance_report()
        assert [entry["model"] for entry in report["performance_history"][-50:]] == ["some-model", "Halving"]
        assert report["avg_latency_ms"] == pytest.approx(100.0)
        assert report["grade"] == "A+"

    @pytest.mark.parametrize(
        ("latency_ms", "failures", "grade"),
        [(100, 0, "A+"), (100, 1, "A+"), (200, 5, "A"), (500, 10, "B"), (9000, 20, "C"), (50, 21, "D")],
    )
    def test_grades_follow_the_documented_table(self, latency_ms: float, failures: int, grade: str) -> None:
        made = optimizer()
        for number in range(100):
            made.record_request_performance("m", latency_ms, number >= failures)
        assert made.export_performance_report()["grade"] == grade

    @pytest.mark.parametrize("latency", [-1.0, float("nan"), float("inf")])
    def test_a_latency_that_is_none_is_refused(self, latency: float) -> None:
        with pytest.raises(ValueError, match="latency_ms"):
            optimizer().record_request_performance("m", latency, True)

    def test_status_and_report_are_json_also_before_the_start(self) -> None:
        made = optimizer()
        assert json.loads(json.dumps(made.get_optimization_status(), allow_nan=False))["config_version"] == 1
        assert json.loads(json.dumps(made.export_performance_report(), allow_nan=False))["grade"] is None

    async def test_no_history_outgrows_its_configured_size(self, model) -> None:
        made = optimizer(optimization_config=OptimizationConfig(metrics_history_size=4))
        made.ensemble_manager.add_model_to_ensemble("m", model)
        await made.configurations.apply(made.config.changed({"metrics_history_size": 3}))
        made.director.running = True
        for number in range(9):
            await made.optimize_model_for_request(model, {"model_name": "m"})
            made.record_request_performance("m", 10.0, number >= 8)
            made.model_manager.apply_parameters({"max_tokens": number})
            await made.cycle.tune()
        status, report = made.get_optimization_status(), made.export_performance_report()
        await made.close()
        assert len(report["performance_history"]) == len(status["decisions"]) == 3
        assert len(made.model_manager.history()) == 3
        # Two of the last three failed.
        assert status["ensemble"]["models"][0]["error_rate"] == pytest.approx(2 / 3)
        assert made.recorder.service().error_fraction == pytest.approx(2 / 3)

    def test_without_tracking_there_is_no_history(self) -> None:
        made = optimizer(optimization_config=OptimizationConfig(enable_performance_tracking=False))
        made.record_request_performance("m", 10.0, True)
        report = made.export_performance_report()
        assert report["performance_history"] is None
        assert report["grade"] is None


class TestModelCompiler:
    def test_a_model_is_served_at_once_and_by_its_build_when_that_is_verified(
        self, model, batch, backend
    ) -> None:
        config = OptimizationConfig()
        compiler = ModelCompiler(config, backend=backend)
        compiled_model = compiler.compile_model(model, "model_id")
        with torch.no_grad():
            expected = compiled_model(batch)
            assert compiler.wait(60)
            optimized = compiler.get_compiled_model("model_id")
            assert torch.allclose(optimized(batch), expected)
        stats = compiler.compilation_stats["model_id"]
        compiler.close()
        assert stats["state"] == "promoted"
        assert stats["speedup"] > 1.0

    def test_a_build_that_fails_leaves_the_original_and_its_reason(self, model, batch, backend) -> None:
        backend.fault = BuildError("out of memory", remedy="Give it more.")
        compiler = ModelCompiler(backend=backend)
        served = compiler.compile_model(model, "m")
        with torch.no_grad():
            expected = served(batch)
            assert compiler.wait(60)
            assert torch.equal(served(batch), expected)
        stats = compiler.compilation_stats["m"]
        compiler.close()
        assert (stats["state"], stats["cause"], stats["mode"]) == ("failed", "out of memory", None)


class TestLoadBasedParameterTuner:
    def test_it_is_made_bare_and_measures_the_machine(self) -> None:
        tuner = LoadBasedParameterTuner(OptimizationConfig())
        metrics = tuner.collect_load_metrics()
        assert metrics.memory_usage_percent is not None
        assert 0 < metrics.memory_usage_percent <= 100
        assert metrics.queue_depth is None
        assert tuner.get_current_strategy() is None

    def test_a_sensor_that_fails_leaves_its_last_figures_until_they_are_stale(
        self, engine, host, clock
    ) -> None:
        engine.running = 4
        tuner = LoadBasedParameterTuner(engine=lambda: [engine.reading()], host=host, clock=clock)
        assert tuner.collect_load_metrics().active_requests == 4

        def broken() -> None:
            raise ConnectionError("the engine hung up")

        engine.reading = broken
        clock.advance(10.0)
        assert tuner.collect_load_metrics().active_requests == 4
        clock.advance(30.0)
        assert "active_requests" in tuner.collect_load_metrics().absent

    @pytest.mark.parametrize(
        ("metrics", "name", "parameters", "mode"),
        [
            (BUSY, "performance", {"max_tokens": 512, "temperature": 0.7, "top_k": 40}, "max-autotune"),
            (QUIET, "quality", {"max_tokens": 2048, "temperature": 0.8, "top_k": 100}, "default"),
        ],
    )
    async def test_strategies_have_the_documented_parameters(self, metrics, name, parameters, mode) -> None:
        model_manager = DynamicModelManager()
        tuner = LoadBasedParameterTuner(OptimizationConfig(), model_manager)
        strategy = tuner.determine_optimization_strategy(metrics)
        await tuner.apply_parameter_adjustments(strategy)
        assert (strategy.name, dict(strategy.parameters), strategy.compile_mode) == (name, parameters, mode)
        assert strategy["name"] == name
        assert strategy.load_score == pytest.approx(metrics.overall_load_score)
        assert tuner.get_current_strategy() == strategy
        assert model_manager.parameters == parameters

    def test_between_the_thresholds_parameters_lie_between_the_modes(self) -> None:
        tuner = LoadBasedParameterTuner(OptimizationConfig())
        strategy = tuner.determine_optimization_strategy(ServerLoadMetrics(55.0))
        assert strategy.name == "balanced"
        assert 512 < strategy.parameters["max_tokens"] < 2048
        assert isinstance(strategy.parameters["max_tokens"], int)
        assert isinstance(strategy.parameters["top_k"], int)
        assert 0.7 < strategy.parameters["temperature"] < 0.8

    async def test_without_dynamic_tuning_nothing_is_put_into_force(self) -> None:
        manager = DynamicModelManager()
        tuner = LoadBasedParameterTuner(OptimizationConfig(enable_dynamic_tuning=False), manager)
        await tuner.apply_parameter_adjustments(tuner.determine_optimization_strategy(BUSY))
        assert manager.parameters == {}

    async def test_any_object_may_be_the_model_manager(self) -> None:
        tuner = LoadBasedParameterTuner(OptimizationConfig(), model_manager=object())
        strategy = tuner.determine_optimization_strategy(QUIET)
        assert await tuner.apply_parameter_adjustments(strategy) is strategy


class TestModelEnsembleManager:
    def make(self, **config) -> ModelEnsembleManager:  # type: ignore[no-untyped-def]
        return ModelEnsembleManager(OptimizationConfig(**config))

    def test_models_are_added_selected_and_learned_from_as_shown(self) -> None:
        ensemble = self.make()
        fast_model, accurate_model = object(), object()
        ensemble.add_model_to_ensemble("fast_model", fast_model, weight=1.0)
        ensemble.add_model_to_ensemble("accurate_model", accurate_model, weight=0.8)
        request_context = {"model_name": "any", "request_id": "req_1"}
        selected = ensemble.select_model_for_request(request_context)
        assert selected.model in (fast_model, accurate_model)
        assert selected["model_id"] == selected.model_id
        assert set(selected) == {"model_id", "model", "propensity", "reason"}
        assert 0.0 < selected.propensity <= 1.0
        ensemble.update_model_performance("fast_model", latency_ms=120, success=True)
        ensemble.update_model_performance(model_id="fast_model", latency_ms=120.0, success=True)
        models = {model["model_id"]: model for model in ensemble.get_ensemble_status()["models"]}
        assert models["fast_model"]["outcomes"] == 2
        assert models["fast_model"]["error_rate"] == 0.0
        assert models["accurate_model"]["outcomes"] == 0

    def test_times_per_token_are_shown_only_where_tokens_were_counted(self) -> None:
        ensemble = ModelEnsembleManager()
        ensemble.add_model_to_ensemble("fast_model", "fast")
        ensemble.update_model_performance("fast_model", latency_ms=120.0, success=True)
        shown = ensemble.get_ensemble_status()["models"][0]
        assert (shown["avg_latency_ms"], shown["time_per_output_token_ms"]) == (120.0, None)
        ensemble.update_model_performance("fast_model", latency_ms=120.0, success=True, output_tokens=12)
        assert ensemble.get_ensemble_status()["models"][0]["time_per_output_token_ms"] > 0

    def test_a_full_ensemble_refuses_another_model_and_says_its_size(self) -> None:
        ensemble = self.make(max_ensemble_size=1)
        ensemble.add_model_to_ensemble("a", object())
        with pytest.raises(CapacityError, match="max_ensemble_size is 1"):
            ensemble.add_model_to_ensemble("b", object())
        with pytest.raises(ValueError, match="max_ensemble_size"):
            ensemble.add_model_to_ensemble("b", object())
        ensemble.remove_model("a")
        ensemble.add_model_to_ensemble("b", object())

    def test_the_error_rate_is_the_observed_fraction(self) -> None:
        ensemble = self.make()
        ensemble.add_model_to_ensemble("a", object())
        for success in (True, True, True, False):
            ensemble.update_model_performance("a", 100, success)
        assert ensemble.get_ensemble_status()["models"][0]["error_rate"] == 0.25

    @pytest.mark.parametrize("strategy", ["weighted_voting", "best_of_n", "adaptive"])
    def test_a_model_that_keeps_failing_is_removed_from_selection(self, strategy: str) -> None:
        ensemble = self.make(ensemble_strategy=strategy)
        ensemble.add_model_to_ensemble("sound", object())
        ensemble.add_model_to_ensemble("broken", object())
        for _ in range(10):
            ensemble.update_model_performance("broken", 100, False)
            ensemble.update_model_performance("sound", 100, True)
        chosen = {ensemble.select_model_for_request({}).model_id for _ in range(100)}
        assert chosen == {"sound"}
        assert ensemble.members_out() == ["broken"]

    def test_best_of_n_prefers_quality_when_speed_is_equal(self) -> None:
        ensemble = self.make(ensemble_strategy="best_of_n")
        ensemble.add_model_to_ensemble("plain", object(), quality=0.3)
        ensemble.add_model_to_ensemble("fine", object(), quality=0.95)
        for _ in range(50):
            for name in ("plain", "fine"):
                ensemble.update_model_performance(
                    name, 100, True, output_tokens=20, time_to_first_token_ms=20
                )
        chosen = [ensemble.select_model_for_request(None).model_id for _ in range(50)]
        assert chosen.count("fine") >= 45

    def test_adaptive_takes_fast_models_at_high_load_and_accurate_ones_at_low(self) -> None:
        ensemble = self.make(ensemble_strategy="adaptive")
        ensemble.add_model_to_ensemble("fast", object(), quality=0.4)
        ensemble.add_model_to_ensemble("accurate", object(), quality=0.95)
        for _ in range(50):
            ensemble.update_model_performance(
                "fast", 150, True, output_tokens=20, prompt_tokens=50, time_to_first_token_ms=20
            )
            ensemble.update_model_performance(
                "accurate", 500, True, output_tokens=20, prompt_tokens=50, time_to_first_token_ms=100
            )
        low = [ensemble.select_model_for_request({"load_info": {"current_load": 0.1}}) for _ in range(40)]
        high = [ensemble.select_model_for_request({"load_info": {"current_load": 0.95}}) for _ in range(40)]
        assert sum(s.model_id == "fast" for s in high) > sum(s.model_id == "fast" for s in low)
        assert sum(s.model_id == "fast" for s in high) >= 35

    def test_preferences_change_the_choice(self) -> None:
        ensemble = self.make(ensemble_strategy="best_of_n")
        ensemble.add_model_to_ensemble("fast", object(), quality=0.6)
        ensemble.add_model_to_ensemble("accurate", object(), quality=0.8)
        for _ in range(50):
            ensemble.update_model_performance("fast", 100, True, output_tokens=20, time_to_first_token_ms=10)
            ensemble.update_model_performance(
                "accurate", 700, True, output_tokens=20, time_to_first_token_ms=300
            )

        def share(quality: object, speed: object) -> int:
            wish = {"user_preferences": {"quality": quality, "speed": speed}}
            return sum(ensemble.select_model_for_request(wish).model_id == "accurate" for _ in range(60))

        assert share("high", "low") > share("low", "high")

    def test_a_conversation_keeps_its_model(self) -> None:
        ensemble = self.make()
        for name in ("a", "b", "c"):
            ensemble.add_model_to_ensemble(name, object())
        for session in range(20):
            context = {"session_id": f"s{session}"}
            assert len({ensemble.select_model_for_request(context).model_id for _ in range(5)}) == 1

    def test_a_context_that_names_a_member_gets_it(self) -> None:
        ensemble = self.make()
        for name in ("a", "b"):
            ensemble.add_model_to_ensemble(name, object())
        selection = ensemble.select_model_for_request({"model_name": "b"})
        assert (selection.model_id, selection.reason, selection.propensity) == ("b", "named", 1.0)

    def test_wrong_calls_are_refused_by_name(self) -> None:
        ensemble = self.make()
        with pytest.raises(CapacityError, match="empty"):
            ensemble.select_model_for_request({})
        ensemble.add_model_to_ensemble("a", object())
        with pytest.raises(ConfigurationError, match="already"):
            ensemble.add_model_to_ensemble("a", object())
        with pytest.raises(ConfigurationError, match="quality"):
            ensemble.add_model_to_ensemble("b", object(), quality=1.5)
        with pytest.raises(ConfigurationError, match="weight"):
            ensemble.add_model_to_ensemble("b", object(), weight=0.0)
        with pytest.raises(UnknownNameError, match="no member 'zzz'"):
            ensemble.update_model_performance("zzz", 10, True)
        with pytest.raises(ConfigurationError, match="latency_ms"):
            ensemble.update_model_performance("a", -1, True)
        with pytest.raises(KeyError):
            _ = ensemble.select_model_for_request({})["nothing"]


class TestDynamicModelManager:
    def test_it_is_made_bare_and_keeps_versions_of_any_model(self, model) -> None:
        manager = DynamicModelManager()
        manager.register("llama", model)
        manager.register("llama", "another", "adapter-2")
        manager.activate("llama", "adapter-2")
        assert manager.get("llama") == "another"
        assert manager.rollback("llama") is model
