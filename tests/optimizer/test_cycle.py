"""The loop: it follows load, survives its parts, and keeps what it decided with its reasons."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from loadwise.decision.facts import Ending, StrategyName
from loadwise.optimizer.loop import ControlLoop
from loadwise.ports import Configure, View
from loadwise.telemetry import names


def burden(server, requests: int) -> None:  # type: ignore[no-untyped-def]
    for engine in server.engines.values():
        engine.running, engine.capacity = requests, max(1, requests)


class TestFollowing:
    async def test_strategy_and_parameters_follow_the_load(self, make) -> None:
        server = make(capacity=4)
        server.optimizer.director.running = True
        assert await server.turn() is StrategyName.QUALITY
        quiet = server.dispatch()
        burden(server, 8)
        server.host.cpu = 100.0
        for engine in server.engines.values():
            engine._queue.extend(asyncio.get_running_loop().create_future() for _ in range(8))
        assert await server.turn() is StrategyName.PERFORMANCE
        busy = server.dispatch()
        assert busy.strategy is StrategyName.PERFORMANCE
        assert busy.changes["max_tokens"] < quiet.changes["max_tokens"]
        assert server.optimizer.model_manager.parameters["max_tokens"] == 512

    async def test_a_pools_load_rests_on_its_own_answers(self, make) -> None:
        server = make()
        fleet = server.optimizer.ensemble_manager.fleet
        far = fleet.parts("fast").member
        fleet.update("fast", replicas=(replace(far.replicas[0], pool_id="far"),))
        for member, took_s in (("fast", 9.0), ("accurate", 0.1)):
            server.end(server.dispatch(model=member), total_s=took_s, time_to_first_token_s=took_s)
        await server.turn(1.0)
        pools = server.optimizer.cycle.decision.pools
        assert pools["far"].metrics.avg_latency_ms == pytest.approx(9000.0)
        assert pools["local"].metrics.avg_latency_ms == pytest.approx(100.0)

    async def test_decisions_are_kept_with_their_evidence(self, make) -> None:
        server = make(metrics_history_size=3)
        for _ in range(5):
            await server.turn()
        shown = (await server.made.control.read(View.STATUS))["decisions"]
        assert len(shown) == 3
        assert shown[-1]["evidence"][0]["name"] == "load_score"
        assert server.made.telemetry.value(names.STEPS, {"reason": "first_observation"}) == 1

    async def test_a_probe_between_turns_sees_a_jump(self, make) -> None:
        server = make()
        await server.turn()
        burden(server, 4)
        server.host.cpu = 100.0
        for engine in server.engines.values():
            engine._queue.extend(asyncio.get_running_loop().create_future() for _ in range(8))
        server.clock.advance(1.0)
        await server.optimizer.cycle.probe()
        assert server.optimizer.parameter_tuner.get_current_strategy().reason == "jump"


class TestSurviving:
    async def test_an_engine_that_cannot_be_read_is_named_and_the_rest_goes_on(self, make) -> None:
        server = make()

        async def broken():  # type: ignore[no-untyped-def]
            raise RuntimeError("no reading today")

        server.engines["fast/0"].observe = broken
        await server.optimizer.start_optimization()
        await server.optimizer.loop.stop()
        shown = await server.made.control.read(View.STATUS)
        assert "no reading today" in shown["loop"]["faults"]["observe:fast/0"]
        assert shown["system_status"] == "degraded"
        assert shown["current_strategy"] == "quality"
        assert set(shown["engines"]) == {"balanced/0", "accurate/0"}
        assert server.made.telemetry.value(names.STEP_ERRORS, {"part": "observe"}) >= 1
        del server.engines["fast/0"].observe
        await server.turn()
        shown = await server.made.control.read(View.STATUS)
        assert shown["loop"]["faults"] == {}

    async def test_a_host_that_cannot_be_read_leaves_the_last_figures_until_they_are_stale(
        self, make
    ) -> None:
        server = make()
        await server.turn()
        server.host.error = OSError("no /proc")
        await server.turn(10.0)
        metrics = server.optimizer.cycle.decision.worst.metrics
        assert metrics.cpu_usage_percent == 10.0
        await server.turn(31.0)
        assert server.optimizer.cycle.decision.worst.metrics.cpu_usage_percent is None

    async def test_a_fault_that_is_over_is_forgotten(self, make) -> None:
        server = make()
        server.host.error = OSError("no /proc")
        await server.turn()
        assert "host" in server.optimizer.cycle.faults
        server.host.error = None
        await server.turn()
        assert server.optimizer.cycle.faults == {}
        assert server.optimizer.cycle.errors["host"] == 1

    async def test_when_deciding_itself_fails_the_strategy_holds_and_then_becomes_safe(
        self, make, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        server = make()
        assert await server.turn() is StrategyName.QUALITY

        def broken(*_: object) -> None:
            raise ZeroDivisionError("a bug in the core")

        monkeypatch.setattr("loadwise.optimizer.cycle.step.step", broken)
        assert await server.turn(10.0) is StrategyName.QUALITY
        assert await server.turn(30.0) is StrategyName.BALANCED
        server.optimizer.director.running = True
        assert server.dispatch().member_id in server.optimizer.ensemble_manager.fleet
        assert "decision" in server.optimizer.cycle.faults

    async def test_a_listener_that_fails_stops_nothing(self, make) -> None:
        server = make()

        def broken(_: object) -> None:
            raise RuntimeError("somebody else's bug")

        server.optimizer.parameter_tuner.on_applied(broken)
        await server.turn()
        assert "strategy" not in server.optimizer.cycle.faults
        counted = server.optimizer.telemetry.value(names.STEP_ERRORS, {"part": "strategy_listener"})
        assert counted == 1


class TestAlerting:
    async def test_errors_above_the_limit_raise_one_alert_that_ends_when_they_do(self, make) -> None:
        server = make()
        await server.turn()
        for number in range(20):
            server.end(server.dispatch(number), Ending.FAILED, status=500)
        for _ in range(3):
            await server.turn(10.0)
        alerts = [alert.name for alert in server.heard.alerts]
        assert alerts.count("high_error_rate") == 1
        shown = {"alert": "high_error_rate", "severity": "ticket"}
        assert server.made.telemetry.value(names.ALERT_ACTIVE, shown) == 1
        for _ in range(4):
            await server.turn(61.0)
        ended = [a for a in server.heard.alerts if a.name == "high_error_rate" and a.resolved]
        assert len(ended) == 1

    async def test_a_quiet_healthy_server_raises_nothing(self, make) -> None:
        server = make()
        for number in range(30):
            server.end(server.dispatch(number))
            await server.turn()
        assert server.heard.alerts == []


class TestLastKnownGood:
    async def serve(self, server, count: int, *, total_s: float) -> None:  # type: ignore[no-untyped-def]
        for number in range(count):
            server.end(server.dispatch(number), total_s=total_s)
        await server.turn()

    async def test_a_regression_puts_the_last_good_configuration_back_once(self, make) -> None:
        server = make(capacity=100)
        server.optimizer.director.running = True
        await server.turn()
        await self.serve(server, 200, total_s=0.3)
        await server.made.control.apply(Configure(changes={"max_ensemble_size": 2}))
        await self.serve(server, 200, total_s=60.0)
        assert server.optimizer.config.max_ensemble_size == 3
        assert server.optimizer.configurations.version == 3
        shown = (await server.made.control.read(View.STATUS))["configuration"]["versions"]
        assert [(v["good"], v["reverted"], v["active"]) for v in shown[:2]] == [
            (True, False, False),
            (False, True, False),
        ]
        assert shown[0]["measured"] == {"requests": 200, "within_objectives_fraction": 1.0}
        await self.serve(server, 200, total_s=60.0)
        assert server.optimizer.configurations.version == 3

    async def test_a_good_configuration_far_back_can_still_be_put_back(self, make) -> None:
        server = make(capacity=100)
        server.optimizer.director.running = True
        await server.turn()
        await self.serve(server, 200, total_s=0.3)
        for number in range(25):
            await server.made.control.apply(Configure(changes={"alert_latency_ms": 1000.0 + number}))
        await self.serve(server, 200, total_s=60.0)
        assert server.optimizer.config.alert_latency_ms == 500.0
        assert "last_known_good" not in server.optimizer.cycle.faults

    async def test_an_operator_who_applies_it_again_pins_it(self, make) -> None:
        server = make(capacity=100)
        server.optimizer.director.running = True
        await server.turn()
        await self.serve(server, 200, total_s=0.3)
        for _ in range(2):
            await server.made.control.apply(Configure(changes={"max_ensemble_size": 2}))
            await self.serve(server, 200, total_s=60.0)
        assert server.optimizer.config.max_ensemble_size == 2


class TestLoop:
    async def test_it_turns_at_its_interval_and_probes_between(self) -> None:
        turned, probed = asyncio.Event(), asyncio.Event()
        counts = {"tune": 0, "probe": 0}

        async def tune() -> None:
            counts["tune"] += 1
            if counts["tune"] >= 3:
                turned.set()

        async def probe() -> None:
            counts["probe"] += 1
            probed.set()

        loop = ControlLoop(tune, probe, lambda: 0.05, probe_s=0.01)
        await loop.start()
        await loop.start()
        assert loop.running
        async with asyncio.timeout(10):
            await turned.wait()
            await probed.wait()
        await loop.stop()
        await loop.stop()
        assert not loop.running

    async def test_waking_it_brings_the_next_turn_at_once(self) -> None:
        turns: asyncio.Queue[None] = asyncio.Queue()

        async def tune() -> None:
            turns.put_nowait(None)

        async def probe() -> None:
            return None

        loop = ControlLoop(tune, probe, lambda: 3600.0, probe_s=3600.0)
        await loop.start()
        await turns.get()
        loop.wake()
        async with asyncio.timeout(10):
            await turns.get()
        await loop.stop()
