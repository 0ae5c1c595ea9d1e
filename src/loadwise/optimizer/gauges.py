"""What Prometheus sees of the present: read when it is scraped, never remembered."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from loadwise.decision.beliefs import Health
from loadwise.decision.facts import StrategyName
from loadwise.telemetry import names
from loadwise.telemetry.prometheus import GaugeValue

if TYPE_CHECKING:
    from loadwise.optimizer.server_side_optimizer import ServerSideOptimizer


def gauges(optimizer: ServerSideOptimizer) -> Iterator[GaugeValue]:
    """Every gauge of the table that has a value now."""
    strategy = optimizer.parameter_tuner.get_current_strategy()
    yield names.RUNNING, (), float(optimizer.director.running)
    yield names.CONFIG_VERSION, (), float(optimizer.configurations.version)
    for name in StrategyName:
        yield names.STRATEGY, (name.value,), float(strategy is not None and strategy.name is name)
    for alert in optimizer.alerts.active():
        yield names.ALERT_ACTIVE, (alert.name,), 1.0
    yield from _members(optimizer)
    yield from _load(optimizer)


def _members(optimizer: ServerSideOptimizer) -> Iterator[GaugeValue]:
    ensemble, counts = optimizer.ensemble_manager, optimizer.director.in_flight
    for name in ensemble.fleet:
        belief = ensemble.beliefs[name]
        serving = ensemble.fleet.is_active(name) and belief.health is not Health.OUT
        yield names.IN_FLIGHT, (name,), float(counts.by_member.get(name, 0))
        yield names.MEMBER_QUALITY, (name,), belief.quality
        yield names.MEMBER_ACTIVE, (name,), float(serving)


def _load(optimizer: ServerSideOptimizer) -> Iterator[GaugeValue]:
    decision = optimizer.cycle.decision
    if decision is None:
        return
    worst = decision.worst
    metrics = worst.metrics
    yield names.LOAD_SCORE, (), worst.score.value
    yield names.CPU_USAGE, (), _share(metrics.cpu_usage_percent)
    yield names.MEMORY_USAGE, (), _share(metrics.memory_usage_percent)
    yield names.GPU_USAGE, (), _share(metrics.gpu_utilization)
    yield names.QUEUE_DEPTH, (), metrics.queue_depth
    yield names.KV_CACHE_USAGE, (), metrics.kv_cache_usage_fraction


def _share(percent: float | None) -> float | None:
    return None if percent is None else percent / 100.0
