"""What Prometheus sees of the present: read when it is scraped, never remembered."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING

from loadwise.decision.beliefs import Health
from loadwise.decision.facts import StrategyName
from loadwise.decision.silence import beside_others, of_members
from loadwise.optimizer.parameter_tuner import LOCAL
from loadwise.optimizer.silences import silences
from loadwise.optimizer.watch import failed_builds
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
        # Of several subjects the sum is shown.
        yield names.ALERT_ACTIVE, (alert.name, alert.severity), 1.0
    yield from _freshness(optimizer)
    yield from _improvement(optimizer)
    yield from _builds(optimizer)
    yield from _members(optimizer)
    yield from _load(optimizer)


def _members(optimizer: ServerSideOptimizer) -> Iterator[GaugeValue]:
    ensemble, counts = optimizer.ensemble_manager, optimizer.director.in_flight
    shares = ensemble.selection_distribution()
    for name in ensemble.fleet:
        belief = ensemble.beliefs[name]
        serving = ensemble.fleet.is_active(name) and belief.health is not Health.OUT
        yield names.IN_FLIGHT, (name,), float(counts.by_member.get(name, 0))
        yield names.MEMBER_QUALITY, (name,), belief.quality
        yield names.MEMBER_ACTIVE, (name,), float(serving)
        yield names.MEMBER_SHARE, (name,), shares.get(name, 0.0)
        yield names.MEMBER_WEIGHT, (name,), ensemble.fleet.parts(name).member.weight
        member, in_flight = ensemble.fleet.parts(name).member, counts.by_member.get(name, 0)
        for limit, share in ensemble.terms.usage(member, in_flight, optimizer.clock.monotonic_s()):
            yield names.LIMIT_USED, (name, limit), share
        for health in Health:
            yield names.MEMBER_HEALTH, (name, health.value), float(belief.health is health)
        for replica, standing in belief.replicas.items():
            for health in Health:
                yield names.REPLICA_HEALTH, (name, replica, health.value), float(standing.health is health)
    yield from _silent(optimizer)


def _silent(optimizer: ServerSideOptimizer) -> Iterator[GaugeValue]:
    now_s = optimizer.clock.monotonic_s()
    seen = silences(optimizer.director, optimizer.readings, optimizer.recorder, now_s)
    for silence in of_members(seen):
        yield names.MEMBER_SILENT, (silence.member_id,), silence.seconds
    for silence in beside_others(seen):
        yield names.REPLICA_SILENT, (silence.member_id, silence.replica_id), silence.seconds


def _load(optimizer: ServerSideOptimizer) -> Iterator[GaugeValue]:
    decision = optimizer.cycle.decision
    if decision is None:
        return
    worst = decision.worst
    metrics = worst.metrics
    yield names.LOAD_SCORE, (), worst.score.value
    for pool in decision.pools.values():
        yield names.POOL_LOAD_SCORE, (pool.pool_id,), pool.score.value
        for component, value in pool.score.parts.items():
            yield names.LOAD_COMPONENT, (pool.pool_id, component), value
    yield names.CPU_USAGE, (), _share(metrics.cpu_usage_percent)
    yield names.MEMORY_USAGE, (), _share(metrics.memory_usage_percent)
    yield names.GPU_USAGE, (), _share(metrics.gpu_utilization)
    yield names.QUEUE_DEPTH, (), metrics.queue_depth
    yield names.KV_CACHE_USAGE, (), metrics.kv_cache_usage_fraction


def _freshness(optimizer: ServerSideOptimizer) -> Iterator[GaugeValue]:
    health = optimizer.watch.health()
    yield names.DECISION_AGE, (), health.loop_age_s
    for rollout, seconds in health.rollouts_back_s.items():
        if seconds < optimizer.configurations.policy.rollback_shown_s:
            yield names.ROLLOUTS_BACK, (rollout,), 1.0
    yield names.MONITORING_AGE, (), health.monitoring_age_s
    pools = optimizer.cycle.pools()
    owners = {replica: pool for pool, replicas in pools.items() for replica in replicas}
    for replica, age_s in health.reading_ages_s.items():
        yield names.READING_AGE, (owners.get(replica, LOCAL), replica), age_s


def _improvement(optimizer: ServerSideOptimizer) -> Iterator[GaugeValue]:
    gained = optimizer.watch.improvement()
    for bound in ("value", "low", "high"):
        yield names.IMPROVEMENT, (bound,), None if gained is None else getattr(gained, bound)
    yield names.UNOPTIMISED, (), None if gained is None else gained.unoptimised_fraction


def _builds(optimizer: ServerSideOptimizer) -> Iterator[GaugeValue]:
    stats = optimizer.model_compiler.compilation_stats
    states = Counter(build["state"] for found in stats.values() for build in found["builds"].values())
    for state, count in states.items():
        yield names.BUILDS, (state,), float(count)
    for model_id in failed_builds(stats):
        yield names.FAILED_BUILDS, (model_id,), 1.0


def _share(percent: float | None) -> float | None:
    return None if percent is None else percent / 100.0
