"""The monitoring system beside us: told of every request, read, and no danger when it fails."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from loadwise.decision.facts import Ending, HostReading, Outcome, ServiceReading, StrategyName
from loadwise.optimizer.server_side_optimizer import ServerSideOptimizer
from loadwise.ports import Alert
from loadwise.settings import OptimizationConfig
from loadwise.telemetry import names
from loadwise.telemetry.monitoring import HandlerSink, Monitoring, MonitoringError
from loadwise.testing import FakeClock


class Collector:
    """What Deep Tree Echo's collector offers, and nothing more."""

    def __init__(self) -> None:
        self.running: set[int] = set()
        self.ended: list[tuple[int, bool, float]] = []
        self.metrics: Any = {
            "active_requests": 3, "throughput_rps": 2.5, "avg_response_time_ms": 120.0, "error_rate": 0.01,
        }  # fmt: skip
        self.broken = False
        self._next = 0

    def record_request_start(self) -> int:
        self._check()
        self._next += 1
        self.running.add(self._next)
        return self._next

    def record_request_end(self, number: int, success: bool, response_time_ms: float) -> None:
        self._check()
        self.running.remove(number)
        self.ended.append((number, success, response_time_ms))

    def get_current_metrics(self) -> Any:
        self._check()
        return self.metrics

    def _check(self) -> None:
        if self.broken:
            raise ConnectionError("the collector is down")


class Manager:
    """What Deep Tree Echo's alert manager offers."""

    def __init__(self) -> None:
        self.notification_handlers: list[Callable[[Any], None]] = []

    def add_notification_handler(self, handler: Callable[[Any], None]) -> None:
        self.notification_handlers.append(handler)


def outcome(ending: Ending = Ending.SUCCEEDED, **changes: Any) -> Outcome:
    values = {
        "request_id": "r", "member_id": "m", "replica_id": "m/0", "ending": ending, "finished_s": 1.0,
        "total_s": 0.25, **changes,
    }  # fmt: skip
    return Outcome(**values)


class Quiet:
    def read(self) -> HostReading:
        return HostReading(read_s=0.0, cpu_usage_percent=1.0)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


async def test_its_figures_are_read_from_mappings_and_attributes_alike(clock: FakeClock) -> None:
    collector = Collector()
    monitoring = Monitoring(collector, clock)
    await monitoring.read()
    expected = (3, 2.5, 120.0, 0.01)
    for _ in range(2):
        found = monitoring.filled(ServiceReading(read_s=clock.monotonic_s()))
        shown = (found.active_requests, found.requests_per_s, found.avg_latency_ms, found.error_fraction)
        assert shown == expected
        collector.metrics = (
            type("Metrics", (), dict(collector.metrics))()
            if isinstance(collector.metrics, dict)
            else collector.metrics
        )
        await monitoring.read()


async def test_what_we_measured_ourselves_counts_more_and_nonsense_counts_nothing(clock: FakeClock) -> None:
    collector = Collector()
    collector.metrics = {"active_requests": float("nan"), "error_rate": 5.0, "throughput_rps": None}
    monitoring = Monitoring(collector, clock)
    await monitoring.read()
    found = monitoring.filled(ServiceReading(read_s=0.0, avg_latency_ms=7.0))
    assert (found.active_requests, found.error_fraction, found.requests_per_s) == (None, None, None)
    assert found.avg_latency_ms == 7.0


async def test_the_last_good_figures_count_for_thirty_seconds(clock: FakeClock) -> None:
    collector = Collector()
    monitoring = Monitoring(collector, clock)
    await monitoring.read()
    assert monitoring.age_s() is None
    collector.broken = True
    for _ in range(3):
        clock.advance(10.0)
        with pytest.raises(MonitoringError, match="the collector is down"):
            await monitoring.read()
    assert monitoring.age_s() == 30.0
    assert not monitoring.lost
    assert monitoring.filled(ServiceReading(read_s=0.0)).active_requests == 3
    clock.advance(1.0)
    assert monitoring.lost
    assert monitoring.filled(ServiceReading(read_s=0.0)).active_requests is None


def test_requests_that_end_are_told_with_their_outcome(clock: FakeClock) -> None:
    collector = Collector()
    monitoring = Monitoring(collector, clock)
    monitoring.ended(outcome())
    monitoring.ended(outcome(Ending.FAILED, status=500))
    monitoring.ended(outcome(Ending.ABANDONED))
    assert collector.ended == [(1, True, 250.0), (2, False, 250.0), (3, True, 250.0)]
    assert not collector.running


def test_a_collector_that_fails_fails_no_request(clock: FakeClock) -> None:
    collector = Collector()
    collector.broken = True
    Monitoring(collector, clock).ended(outcome())
    assert collector.ended == []


def made(clock: FakeClock, collector: Collector, manager: Manager | None = None) -> ServerSideOptimizer:
    return ServerSideOptimizer(
        optimization_config=OptimizationConfig(enable_torch_compile=False),
        host=Quiet(), sinks=[], clock=clock, metrics_collector=collector, alert_manager=manager,
    )  # fmt: skip


async def test_monitoring_that_fails_leaves_the_safe_strategy_and_says_so(clock: FakeClock) -> None:
    collector, manager = Collector(), Manager()
    heard: list[Alert] = []
    manager.add_notification_handler(heard.append)
    optimizer = made(clock, collector, manager)
    await optimizer.cycle.tune()
    assert optimizer.parameter_tuner.get_current_strategy().name is StrategyName.QUALITY
    collector.broken = True
    for _ in range(2):
        clock.advance(14.0)
        await optimizer.cycle.tune()
    # On the last good figures.
    assert optimizer.parameter_tuner.get_current_strategy().name is StrategyName.QUALITY
    assert "monitoring" in optimizer.get_optimization_status()["loop"]["faults"]
    assert [alert.name for alert in heard] == ["monitoring_failed"]
    clock.advance(14.0)
    await optimizer.cycle.tune()
    assert optimizer.parameter_tuner.get_current_strategy().name is StrategyName.BALANCED
    collector.broken = False
    clock.advance(60.0)
    await optimizer.cycle.tune()
    assert "monitoring" not in optimizer.get_optimization_status()["loop"]["faults"]
    assert optimizer.parameter_tuner.get_current_strategy().name is StrategyName.QUALITY


async def test_the_library_tells_the_collector_of_requests(clock: FakeClock) -> None:
    collector = Collector()
    optimizer = made(clock, collector)
    optimizer.record_request_performance("m", 80.0, True)
    optimizer.record_request_performance("m", 90.0, False)
    assert collector.ended == [(1, True, 80.0), (2, False, 90.0)]


def alert() -> Alert:
    return Alert(name="latency", severity="ticket", summary="Slow.", remedy="Add a replica.")


def test_handlers_that_were_there_and_those_that_come_hear_each_alert_once() -> None:
    manager = Manager()
    first: list[Any] = []
    second: list[Any] = []
    manager.add_notification_handler(first.append)
    sink = HandlerSink(manager)
    manager.add_notification_handler(second.append)
    sink.deliver(alert())
    assert (len(first), len(second)) == (1, 1)
    assert len(manager.notification_handlers) == 2


async def test_what_another_system_fails_at_is_counted(clock: FakeClock) -> None:
    collector, manager = Collector(), Manager()
    manager.add_notification_handler(lambda _: 1 / 0)
    optimizer = made(clock, collector, manager)
    collector.broken = True
    optimizer.record_request_performance("m", 80.0, True)
    optimizer.alerts.add([])
    await optimizer.cycle.tune()
    clock.advance(6.0)
    await optimizer.cycle.tune()
    counted = {
        part: optimizer.telemetry.value(names.STEP_ERRORS, {"part": part})
        for part in ("metrics_collector", "notification_handler")
    }
    assert min(counted.values()) >= 1


def test_a_handler_that_fails_does_not_keep_alerts_from_others(caplog: pytest.LogCaptureFixture) -> None:
    manager = Manager()
    heard: list[Any] = []

    def broken(_: Any) -> None:
        raise RuntimeError("no network")

    manager.add_notification_handler(broken)
    manager.add_notification_handler(heard.append)
    HandlerSink(manager).deliver(alert())
    assert [found.name for found in heard] == ["latency"]
    assert "notification_handler_failed" in caplog.text
