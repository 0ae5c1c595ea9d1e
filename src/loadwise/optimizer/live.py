"""The page's frame: everything an operator sees at one moment, as JSON values; unknown is None."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Final

from loadwise.clock import iso_utc
from loadwise.optimizer import views
from loadwise.optimizer.situation import SHORT_S, diagnosis_json, unread
from loadwise.ports import JsonObject
from loadwise.telemetry.latencies import Latencies
from loadwise.telemetry.stretches import Answers, Stretch
from loadwise.telemetry.timeline import TRACKS

if TYPE_CHECKING:
    from loadwise.optimizer.server_side_optimizer import ServerSideOptimizer

QUANTILES: Final = {"p50": 0.5, "p95": 0.95, "p99": 0.99}


def frame(optimizer: ServerSideOptimizer) -> JsonObject:
    """One moment: verdict, load, members, latency, gain, alerts, changes, configuration."""
    now_s, wall_s = optimizer.clock.monotonic_s(), optimizer.clock.wall_s()
    recent = optimizer.recorder.timeline.over(SHORT_S, now_s)
    decision = optimizer.cycle.decision
    strategy = optimizer.parameter_tuner.get_current_strategy()
    config = optimizer.config
    return {
        "time": iso_utc(wall_s),
        "time_s": wall_s,
        "system_status": views.system_status(optimizer),
        "running": optimizer.director.running,
        "diagnosis": diagnosis_json(optimizer, recent),
        "load": views.load_json(decision),
        "thresholds": {"low": config.load_threshold_low, "high": config.load_threshold_high},
        "strategy": None if strategy is None else views.strategy_json(strategy),
        "requests": _requests(optimizer, recent),
        "latency": latency_json(recent),
        "objectives": optimizer.lookout.config()["objectives"],
        "members": members(optimizer, recent),
        "improvement": optimizer.lookout.improvement(),
        "rollout": views.rollout_json(optimizer),
        "alerts": optimizer.alerts.as_json(),
        "changes": optimizer.lookout.changes(),
        "builds": optimizer.model_compiler.compilation_stats,
        "builds_said": views.builds_shown(optimizer),
        "config": optimizer.lookout.config(),
        "config_version": optimizer.configurations.version,
        "tracks": tracks(optimizer, newest=2),
    }


def history(optimizer: ServerSideOptimizer) -> JsonObject:
    """Load, strategy, requests and latencies over time at each resolution, oldest first."""
    return {"time_s": optimizer.clock.wall_s(), "tracks": tracks(optimizer)}


def tracks(optimizer: ServerSideOptimizer, newest: int | None = None) -> JsonObject:
    """Each resolution by the seconds it reaches back, with all its points or the newest."""
    timeline, now_s = optimizer.recorder.timeline, optimizer.clock.monotonic_s()
    shift_s, points_of = optimizer.clock.wall_s() - now_s, optimizer.lookout.points
    found = {}
    for step_s, size in TRACKS:
        _, kept = timeline.stretches(step_s * size, now_s, newest)
        points = points_of(step_s, kept, partial(point, shift_s=shift_s, step_s=step_s))
        found[f"{step_s * size:g}"] = {"step_s": step_s, "points": points}
    return found


def point(stretch: Stretch, shift_s: float, step_s: float) -> JsonObject:
    """One stretch of a chart; `t` is when it began (s since 1970)."""
    first_p50, first_p95 = stretch.first_token.quantiles_s(0.5, 0.95)
    token_p50, token_p95 = stretch.per_token.quantiles_s(0.5, 0.95)
    return {
        "t": round(stretch.begin_s + shift_s, 3),
        "load": stretch.load,
        "strategy": stretch.strategy,
        "waiting": stretch.waiting,
        "rps": stretch.requests / step_s,
        "failed": stretch.failed,
        "refused": stretch.refused,
        "refused_rps": stretch.refused / step_s,
        "within": stretch.within / stretch.judged if stretch.judged else None,
        "first_p50": first_p50,
        "first_p95": first_p95,
        "token_p50": token_p50,
        "token_p95": token_p95,
        "total_p95": stretch.total.quantile_s(0.95),
        "members": {name: answers.requests for name, answers in stretch.members.items()},
    }


def _requests(optimizer: ServerSideOptimizer, recent: Stretch) -> JsonObject:
    return {
        "in_flight": len(optimizer.director.in_flight),
        "last_5m": recent.requests,
        "failed_5m": recent.failed,
        "refused_5m": recent.refused,
        "within_fraction_5m": recent.within / recent.judged if recent.judged else None,
    }


def latency_json(recent: Stretch) -> JsonObject:
    """Percentiles in seconds; None without a request that was timed."""
    rows = {
        "time_to_first_token_s": recent.first_token,
        "time_per_output_token_s": recent.per_token,
        "total_s": recent.total,
    }
    return {name: quantiles(found) for name, found in rows.items()}


def quantiles(found: Latencies) -> JsonObject:
    """Median, 95th and 99th percentile and the number of requests behind them."""
    shown: JsonObject = dict(zip(QUANTILES, found.quantiles_s(*QUANTILES.values()), strict=True))
    return {**shown, "requests": found.count}


def members(optimizer: ServerSideOptimizer, recent: Stretch) -> list[JsonObject]:
    """Each active member: who it is, what it was given, how it did, what it runs."""
    total = sum(answers.requests for answers in recent.members.values())
    shown = optimizer.ensemble_manager.shown()
    builds = optimizer.model_compiler.compilation_stats
    return [{**model, **_member(optimizer, model["model_id"], recent, total, builds)} for model in shown]


def _member(
    optimizer: ServerSideOptimizer, name: str, recent: Stretch, total: int, builds: Mapping[str, JsonObject]
) -> JsonObject:
    answers = recent.members.get(name, Answers())
    replicas = [r.replica_id for r in optimizer.ensemble_manager.fleet.parts(name).member.replicas]
    readings = optimizer.readings.latest(replicas)
    waiting = [r.waiting_requests for r in readings if r.waiting_requests is not None]
    running = [r.running_requests for r in readings if r.running_requests is not None]
    build = builds.get(name)
    return {
        "share_5m": answers.requests / total if total else None,
        "requests_5m": answers.requests,
        "failed_5m": answers.failed,
        "within_5m": answers.within / answers.judged if answers.judged else None,
        "first_token_s": quantiles(answers.first_token),
        "in_flight": optimizer.director.in_flight.by_member.get(name, 0),
        "waiting": sum(waiting) if waiting else None,
        "running": sum(running) if running else None,
        "unread": unread(optimizer, name) or None,
        "build": None
        if build is None
        else {"state": build["state"], "mode": build["mode"], "cause": build["cause"]},
    }
