"""Every remedy of docs/troubleshooting.md, tried."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import NoReturn

import pytest
import torch

from loadwise import (
    CapacityError,
    DynamicModelManager,
    ModelCompiler,
    OptimizationConfig,
    ServerSideOptimizer,
)
from loadwise.errors import BuildDeclinedError, BuildError
from loadwise.optimizer.control import OptimizationControl
from loadwise.ports import Availability, BuildRequest, Configure, Recompile

PAGE = Path(__file__).parents[2] / "docs" / "troubleshooting.md"


def code_blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)


@pytest.fixture
def optimizer(engine, host, clock, backend) -> ServerSideOptimizer:  # type: ignore[no-untyped-def]
    compiler = ModelCompiler(OptimizationConfig(), backend=backend, automatic=False)
    return ServerSideOptimizer(engine, None, host=host, clock=clock, sinks=[], model_compiler=compiler)


async def compiled(optimizer, model, batch, name: str) -> None:  # type: ignore[no-untyped-def]
    """A model that has been called once, and whose build has been tried."""
    await optimizer.start_optimization()
    served = await optimizer.optimize_model_for_request(model, {"model_name": name})
    with torch.no_grad():
        served(batch)
    optimizer.model_compiler.force_recompile(name)
    assert await asyncio.to_thread(optimizer.model_compiler.wait, 60)


async def test_the_pages_python_runs(optimizer, model, batch, capsys) -> None:
    for _ in range(5):
        optimizer.record_request_performance("m", 10.0, True)
    optimizer.ensemble_manager.add_model_to_ensemble("problematic_model", model)
    for _ in range(3):
        optimizer.ensemble_manager.update_model_performance("problematic_model", 10, False)
    await compiled(optimizer, model, batch, "problematic_model")
    blocks = code_blocks("python")
    assert len(blocks) == 3
    for block in blocks:
        exec(block, {"optimizer": optimizer})
    await optimizer.close()
    said = capsys.readouterr().out
    assert "problematic_model promoted" in said
    assert "Model problematic_model has a high error rate" in said


async def rebuilt(optimizer, name: str) -> str:
    """What became of a forced rebuild; the optimizer is closed."""
    optimizer.model_compiler.force_recompile(name)
    assert await asyncio.to_thread(optimizer.model_compiler.wait, 60)
    state: str = optimizer.model_compiler.compilation_stats[name]["state"]
    await optimizer.close()
    return state


class TestCompilation:
    async def test_a_failed_build_says_why_and_is_repaired_by_recompiling(
        self, optimizer, model, batch, backend
    ) -> None:
        backend.fault = BuildError("no space left", remedy="Free some.")
        await compiled(optimizer, model, batch, "problematic_model")
        stats = optimizer.get_optimization_status()["compilation_stats"]["problematic_model"]
        assert (stats["state"], stats["cause"], stats["remedy"]) == ("failed", "no space left", "Free some.")
        await optimizer.cycle.probe()
        backend.fault = None
        answer = await OptimizationControl(optimizer).apply(Recompile(model_id="problematic_model"))
        assert answer["models"] == ["problematic_model"]
        assert await asyncio.to_thread(optimizer.model_compiler.wait, 60)
        stats = optimizer.get_optimization_status()["compilation_stats"]["problematic_model"]
        await optimizer.cycle.probe()
        shown = optimizer.export_performance_report()["changes"]
        told = {change["what"].rpartition("problematic_model: ")[2]: change for change in shown}
        await optimizer.close()
        assert stats["state"] == "promoted"
        assert (told["failed"]["reason"], told["failed"]["undo"]) == ("no space left", None)
        assert "enable_torch_compile" in told["promoted"]["undo"]

    async def test_a_wrong_build_never_serves(self, optimizer, model, batch, backend) -> None:
        backend.wrong = True
        await compiled(optimizer, model, batch, "m")
        served = await optimizer.optimize_model_for_request(model, {"model_name": "m"})
        with torch.no_grad():
            assert torch.equal(served(batch), model(batch))
        await optimizer.close()

    async def test_a_model_in_training_mode_is_built_after_eval(self, optimizer, model, batch) -> None:
        model.train()
        await compiled(optimizer, model, batch, "m")
        assert "training" in optimizer.model_compiler.compilation_stats["m"]["cause"]
        model.eval()
        assert await rebuilt(optimizer, "m") == "promoted"

    async def test_a_compiler_that_was_missing_builds_once_it_is_there(
        self, optimizer, model, batch, backend, monkeypatch
    ) -> None:
        with monkeypatch.context() as without:
            without.setattr(backend, "available", lambda: Availability(ok=False, reason="g++"))
            await compiled(optimizer, model, batch, "m")
            stats = optimizer.model_compiler.compilation_stats["m"]
            assert stats["cause"] == "unavailable: g++"
            assert "make doctor" in stats["remedy"]
            answer = await OptimizationControl(optimizer).apply(Recompile(model_id="m"))
            assert answer["reasons"]["m"].startswith("unavailable: g++. Install g++")
        assert await rebuilt(optimizer, "m") == "promoted"

    async def test_a_build_that_was_stopped_is_made_when_it_is_forced(
        self, optimizer, model, batch, backend, monkeypatch
    ) -> None:
        def stopped(request: BuildRequest) -> NoReturn:
            raise BuildError("The build was stopped.")

        with monkeypatch.context() as ended:
            ended.setattr(backend, "build", stopped)
            await compiled(optimizer, model, batch, "m")
        assert "stopped" in optimizer.model_compiler.compilation_stats["m"]["cause"]
        assert await rebuilt(optimizer, "m") == "promoted"

    async def test_a_build_that_is_not_faster_leaves_the_original(
        self, optimizer, model, batch, backend
    ) -> None:
        backend.fault = BuildDeclinedError("The build is not faster.")
        await compiled(optimizer, model, batch, "m")
        stats = optimizer.model_compiler.compilation_stats["m"]
        served = await optimizer.optimize_model_for_request(model, {"model_name": "m"})
        with torch.no_grad():
            assert torch.equal(served(batch), model(batch))
        await optimizer.close()
        assert stats["state"] == "declined"
        assert "not faster" in stats["cause"]

    async def test_what_is_no_module_is_served_as_it_is(self, optimizer) -> None:
        await optimizer.start_optimization()
        assert await optimizer.optimize_model_for_request("weights", {"model_name": "m"}) == "weights"
        cause = optimizer.get_optimization_status()["compilation_stats"]["m"]["cause"]
        await optimizer.close()
        assert "not a torch module" in cause

    async def test_switching_compilation_off_applies_at_once(self, optimizer, model) -> None:
        await optimizer.start_optimization()
        await OptimizationControl(optimizer).apply(Configure(changes={"enable_torch_compile": False}))
        assert await optimizer.optimize_model_for_request(model, {"model_name": "m"}) is model
        await optimizer.close()


class TestDegradation:
    async def test_tracking_can_be_turned_on_while_serving(self, engine) -> None:
        optimizer = ServerSideOptimizer(
            engine, None, OptimizationConfig(enable_performance_tracking=False), sinks=[]
        )
        optimizer.record_request_performance("m", 10.0, True)
        assert optimizer.export_performance_report()["performance_history"] is None
        await OptimizationControl(optimizer).apply(Configure(changes={"enable_performance_tracking": True}))
        optimizer.record_request_performance("m", 10.0, True)
        assert len(optimizer.export_performance_report()["performance_history"]) == 1

    async def test_recommendations_name_what_would_help(self, optimizer) -> None:
        for _ in range(10):
            optimizer.record_request_performance("m", 2000.0, False)
        advice = optimizer.export_performance_report()["recommendations"]
        assert any("error rates" in sentence for sentence in advice)

    async def test_unknown_load_is_the_reason_given_when_nothing_can_be_read(
        self, optimizer, host, engine
    ) -> None:
        def broken() -> None:
            raise OSError("no figures")

        host.read = broken
        optimizer.cycle.parts.client = None
        await optimizer.start_optimization()
        strategy = optimizer.parameter_tuner.get_current_strategy()
        absent = optimizer.get_optimization_status()["absent"]
        await optimizer.close()
        assert (strategy.name, strategy.reason) == ("balanced", "unknown_load")
        assert "cpu_usage_percent" in absent

    async def test_a_longer_dwell_holds_the_strategy(self, optimizer, engine, host, clock) -> None:
        await OptimizationControl(optimizer).apply(Configure(changes={"dwell_sec": 600.0, "hysteresis": 0.2}))
        await optimizer.start_optimization()
        for load in (2, 4, 5, 6):
            engine.running, host.cpu = load, load * 10.0
            clock.advance(20.0)
            await optimizer.cycle.tune()
        name = optimizer.parameter_tuner.get_current_strategy().name
        await optimizer.close()
        assert name == "quality"

    async def test_a_shorter_interval_holds_at_once(self, optimizer) -> None:
        await OptimizationControl(optimizer).apply(Configure(changes={"tuning_interval_sec": 3600.0}))
        await optimizer.start_optimization()
        turned, turns = asyncio.Event(), optimizer.cycle.turns
        optimizer.parameter_tuner.on_applied(
            lambda _: turned.set() if optimizer.cycle.turns >= turns + 3 else None
        )
        await OptimizationControl(optimizer).apply(Configure(changes={"tuning_interval_sec": 0.05}))
        async with asyncio.timeout(60):
            await turned.wait()
        await optimizer.close()

    async def test_a_change_that_was_taken_back_stays_when_it_is_applied_again(self) -> None:
        manager = DynamicModelManager()
        manager.register("configuration", "good")
        manager.record_performance("configuration", within_objectives=True)
        manager.register("configuration", "mine")
        manager.activate("configuration", "v2")
        assert manager.record_performance("configuration", within_objectives=False) == "good"
        manager.activate("configuration", "v2")
        assert manager.record_performance("configuration", within_objectives=False) == "mine"

    async def test_stopped_requests_pass_untouched(self, optimizer, model) -> None:
        optimizer.ensemble_manager.add_model_to_ensemble("member", "weights")
        await optimizer.start_optimization()
        assert await optimizer.optimize_model_for_request(model, {}) == "weights"
        await optimizer.stop_optimization()
        assert await optimizer.optimize_model_for_request(model, {}) is model


class TestEnsemble:
    async def test_a_member_that_shall_not_return_is_removed(self, optimizer) -> None:
        ensemble = optimizer.ensemble_manager
        for name in ("sound", "name"):
            ensemble.add_model_to_ensemble(name, name)
        assert ensemble.remove_model("name") == "name"
        assert {ensemble.select_model_for_request({}).model_id for _ in range(30)} == {"sound"}

    async def test_a_full_ensemble_takes_one_more_after_raising_its_size(self, optimizer) -> None:
        ensemble = optimizer.ensemble_manager
        for name in ("a", "b", "c"):
            ensemble.add_model_to_ensemble(name, name)
        with pytest.raises(CapacityError, match="max_ensemble_size is 3"):
            ensemble.add_model_to_ensemble("d", "d")
        await OptimizationControl(optimizer).apply(Configure(changes={"max_ensemble_size": 4}))
        ensemble.add_model_to_ensemble("d", "d")
        assert len(ensemble.get_ensemble_status()["models"]) == 4

    async def test_given_qualities_move_requests_to_the_better_model(self, optimizer) -> None:
        def share(quality_of_good: float | None) -> float:
            from random import Random

            from loadwise import ModelEnsembleManager

            ensemble = ModelEnsembleManager(OptimizationConfig(), random=Random(4))
            ensemble.add_model_to_ensemble("small", "s", quality=None if quality_of_good is None else 0.2)
            ensemble.add_model_to_ensemble("good", "g", quality=quality_of_good)
            for _ in range(30):
                for name, total in (("small", 100), ("good", 400)):
                    ensemble.update_model_performance(
                        name, total, True, output_tokens=20, prompt_tokens=20, time_to_first_token_ms=20
                    )
            chosen = [ensemble.select_model_for_request({}).model_id for _ in range(300)]
            return chosen.count("good") / 300

        assert share(1.0) > share(None)


async def test_a_part_that_fails_is_named_and_serving_goes_on(optimizer, host, model) -> None:
    def broken() -> None:
        raise OSError("sensor unplugged")

    host.read = broken
    await optimizer.start_optimization()
    status = optimizer.get_optimization_status()
    assert status["system_status"] == "degraded"
    assert "sensor unplugged" in status["loop"]["faults"]["host"]
    assert await optimizer.optimize_model_for_request(model, {"model_name": "m"}) is not None
    await optimizer.close()
