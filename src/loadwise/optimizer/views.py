"""What the control plane shows, as JSON values: nothing is computed here that was not measured."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from loadwise.clock import iso_utc
from loadwise.decision import grading
from loadwise.decision.load import FIELDS, ServerLoadMetrics
from loadwise.decision.step import Decision
from loadwise.decision.strategy import Strategy
from loadwise.optimizer.builds_view import builds_json, builds_lines
from loadwise.optimizer.improvement_view import improvement_json
from loadwise.ports import JsonObject

if TYPE_CHECKING:
    from loadwise.optimizer.server_side_optimizer import ServerSideOptimizer

# A load score from which on the system counts as overloaded.
OVERLOADED: Final = 0.95
# Newest decisions that the status shows.
SHOWN_DECISIONS: Final = 10
# Newest changes that it shows.
SHOWN_CHANGES: Final = 50


def system_status(optimizer: ServerSideOptimizer) -> str:
    """One of healthy, degraded, overloaded, bypassed, starting."""
    if not optimizer.director.running:
        return "bypassed" if optimizer.started or optimizer.bypassed else "starting"
    decision = optimizer.cycle.decision
    if decision is None:
        return "starting"
    score = decision.worst.score.value
    if score is not None and score >= OVERLOADED:
        return "overloaded"
    ensemble = optimizer.ensemble_manager
    out = ensemble.members_out() or ensemble.replicas_out()
    troubled = optimizer.cycle.faults or out or optimizer.alerts.active()
    return "degraded" if troubled else "healthy"


def strategy_json(strategy: Strategy) -> JsonObject:
    """A strategy with its parameters, mode, load and reason."""
    return {
        "name": strategy.name.value,
        "parameters": dict(strategy.parameters),
        "compile_mode": strategy.compile_mode,
        "load_score": strategy.load_score,
        "reason": strategy.reason.value,
    }


def load_json(decision: Decision | None) -> JsonObject | None:
    """The worst pool's load, named, with its components; and each pool's strategy."""
    if decision is None:
        return None
    worst = decision.worst
    return {
        "pool": worst.pool_id,
        "score": worst.score.value,
        "components": dict(worst.score.parts),
        "absent_components": list(worst.score.absent),
        "pools": {
            name: {"score": pool.score.value, "strategy": pool.strategy.name.value}
            for name, pool in decision.pools.items()
        },
    }


def status(optimizer: ServerSideOptimizer) -> JsonObject:
    """The whole of what runs."""
    decision, cycle = optimizer.cycle.decision, optimizer.cycle
    strategy = optimizer.parameter_tuner.in_force()
    return {
        "timestamp": iso_utc(optimizer.clock.wall_s()),
        "system_status": system_status(optimizer),
        "running": optimizer.director.running,
        "config": optimizer.config.model_dump(mode="json"),
        "config_version": optimizer.configurations.version,
        "configuration": optimizer.configurations.as_json(),
        "current_strategy": strategy.name.value,
        "strategy": strategy_json(strategy),
        "load": load_json(decision),
        "absent": list(FIELDS) if decision is None else list(decision.worst.metrics.absent),
        "compilation_stats": optimizer.model_compiler.compilation_stats,
        "builds": builds_json(optimizer.model_compiler, None if decision is None else decision.builds),
        "ensemble": optimizer.ensemble_manager.get_ensemble_status(),
        "in_flight": len(optimizer.director.in_flight),
        "alerts": optimizer.alerts.as_json(),
        "engines": _engines(optimizer),
        "loop": {
            "running": optimizer.loop.running,
            "turns": cycle.turns,
            "errors": dict(cycle.errors),
            "faults": {name: fault.message for name, fault in cycle.faults.items()},
        },
        "decisions": _decisions(optimizer),
        "journal": optimizer.chronicle.as_json(),
        "changes_last_hour": optimizer.chronicle.changes(within_s=3600.0)[-SHOWN_CHANGES:],
        "improvement": improvement_json(optimizer.recorder.experiments, optimizer.config.experiment),
        "rollout": rollout_json(optimizer),
    }


def builds_shown(optimizer: ServerSideOptimizer) -> list[str]:
    """Builds in words; empty where loadwise compiles nothing."""
    decision = optimizer.cycle.decision
    return builds_lines(optimizer.model_compiler, None if decision is None else decision.builds)


def rollout_json(optimizer: ServerSideOptimizer) -> list[JsonObject]:
    """Each route's, and each named key's, share of optimised traffic, and why it is that."""
    return optimizer.recorder.experiments.rollouts.as_json(optimizer.clock.monotonic_s())


def _engines(optimizer: ServerSideOptimizer) -> JsonObject:
    shown = {}
    for reading in optimizer.readings.latest():
        shown[reading.replica_id] = {
            name: getattr(reading, name)
            for name in reading.__dataclass_fields__
            if name not in ("replica_id", "read_s")
        }
    return shown


def _decisions(optimizer: ServerSideOptimizer) -> list[JsonObject] | None:
    kept = optimizer.cycle.parts.decisions.entries()
    if kept is None:
        return None
    now_s = optimizer.clock.monotonic_s()
    return [
        {
            "seconds_ago": max(0.0, now_s - decision.decided_s),
            "strategy": decision.worst.strategy.name.value,
            "reason": decision.worst.strategy.reason.value,
            "load_score": decision.worst.score.value,
            "evidence": [{"name": e.name, "value": e.value, "note": e.note} for e in decision.evidence],
        }
        for decision in kept[-SHOWN_DECISIONS:]
    ]


def metrics_json(metrics: ServerLoadMetrics, score: float | None) -> JsonObject:
    """The fields of `ServerLoadMetrics`, the score and what is absent."""
    shown: dict[str, Any] = {name: getattr(metrics, name) for name in FIELDS}
    return {**shown, "overall_load_score": score, "absent": list(metrics.absent)}


def report(optimizer: ServerSideOptimizer) -> JsonObject:
    """The performance report; what needs history is None while none is kept."""
    recorder, cycle = optimizer.recorder, optimizer.cycle
    entries = recorder.history.entries()
    summary = recorder.summary()
    measured = recorder.improvement()
    strategy = optimizer.parameter_tuner.in_force()
    kept = entries is not None
    return {
        "generated": iso_utc(optimizer.clock.wall_s()),
        "system_status": system_status(optimizer),
        "grade": summary.grade,
        "performance_grade": summary.grade,
        "total_requests": summary.requests if kept else None,
        "refused_requests": summary.refused if kept else None,
        "success_rate": summary.success_rate,
        "avg_latency_ms": summary.avg_latency_ms,
        "within_objectives_fraction": summary.within_objectives_fraction,
        "objectives": optimizer.config.objectives.model_dump(),
        "performance_improvement": None if measured is None else measured.value,
        "improvement": improvement_json(recorder.experiments, optimizer.config.experiment),
        "recommendations": list(
            grading.recommendations(
                optimizer.config.policy(),
                optimizer.watch.health(),
                strategy.name,
                summary.within_objectives_fraction,
            )
        ),
        "performance_history": [entry.as_json() for entry in entries] if entries is not None else None,
        "strategy": strategy_json(strategy),
        "load": load_json(cycle.decision),
        "ensemble": optimizer.ensemble_manager.get_ensemble_status(),
        "compilation_stats": optimizer.model_compiler.compilation_stats,
        "alerts": optimizer.alerts.as_json(),
        "config_version": optimizer.configurations.version,
        "config": optimizer.config.model_dump(mode="json"),
    }


def dashboard(optimizer: ServerSideOptimizer, metrics: ServerLoadMetrics, score: float | None) -> JsonObject:
    """The origin's dashboard, key for key, then the proof of improvement; None where nothing was measured."""
    measured = optimizer.recorder.improvement()
    strategy = optimizer.parameter_tuner.in_force()
    active = list(optimizer.ensemble_manager.fleet.active())
    shares: Mapping[str, float] = optimizer.ensemble_manager.selection_distribution()
    return {
        "timestamp": iso_utc(optimizer.clock.wall_s()),
        "system_status": system_status(optimizer),
        "current_strategy": strategy.name.value,
        "load_score": score,
        "optimization_metrics": {
            "compilation_enabled": optimizer.config.enable_torch_compile,
            "ensemble_models": len(active),
            "avg_optimization_time_ms": optimizer.avg_optimization_time_ms(),
            "performance_improvement": None if measured is None else measured.value,
        },
        "server_metrics": {
            "cpu_usage": metrics.cpu_usage_percent,
            "memory_usage": metrics.memory_usage_percent,
            "gpu_utilization": metrics.gpu_utilization,
            "throughput_rps": metrics.throughput_rps,
        },
        "ensemble_status": {"active_models": active, "selection_distribution": dict(shares)},
        "improvement": improvement_json(optimizer.recorder.experiments, optimizer.config.experiment),
        "rollout": rollout_json(optimizer),
    }
