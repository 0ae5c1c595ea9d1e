"""The situation as it is now, for the diagnosis: what the core reads, and its verdict in JSON and text."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from loadwise.clock import iso_utc
from loadwise.decision.burn import Share, rate
from loadwise.decision.diagnosis import (
    Burn,
    Diagnosis,
    MemberSight,
    PoolSight,
    Situation,
    Stage,
    Traffic,
    diagnose,
)
from loadwise.decision.facts import Objectives
from loadwise.decision.replicas import outs
from loadwise.optimizer import views
from loadwise.optimizer.undoing import changes
from loadwise.ports import JsonObject
from loadwise.telemetry import night
from loadwise.telemetry.stretches import Answers, Stretch, Tally

if TYPE_CHECKING:
    from loadwise.optimizer.server_side_optimizer import ServerSideOptimizer

SHORT_S: Final = 300.0
LONG_S: Final = 3600.0


def text(optimizer: ServerSideOptimizer) -> str:
    """The diagnosis as plain text."""
    last_hour = changes(optimizer, LONG_S)
    status = views.system_status(optimizer)
    return night.text(
        diagnosis(optimizer),
        heading=f"loadwise: {status}, configuration {optimizer.configurations.version}, "
        f"{iso_utc(optimizer.clock.wall_s())}",
        bypass=_bypass(optimizer),
        target=optimizer.config.alert_objective_target,
        builds=views.builds_shown(optimizer),
        changes=last_hour,
    )


def diagnosis_json(optimizer: ServerSideOptimizer, recent: Stretch) -> JsonObject:
    """The diagnosis for the page; `recent` are the last five minutes."""
    found, target = diagnosis(optimizer, recent), optimizer.config.alert_objective_target
    return {
        "culprit": found.fault.culprit.value,
        "name": found.fault.name,
        "sentence": found.fault.sentence,
        "bypass": _bypass(optimizer),
        "bypassed": not optimizer.director.running,
        "target": target,
        "burns": [
            {
                "route": burn.route,
                "objective": night.objective_text(burn),
                "burn_5m": rate(burn.short, target),
                "burn_1h": rate(burn.long, target),
                "requests_5m": burn.short.judged,
                "missed_5m": burn.short.missed,
                "requests_1h": burn.long.judged,
                "missed_1h": burn.long.missed,
            }
            for burn in found.burns
        ],
        "stages": [{"name": s.name, "mean_s": s.mean_s, "note": s.note} for s in found.stages],
        "slowest": found.slowest,
        "requests_5m": found.short._asdict(),
        "requests_1h": found.long._asdict(),
    }


def diagnosis(optimizer: ServerSideOptimizer, recent: Stretch | None = None) -> Diagnosis:
    """What is found at fault now; `recent` are the last five minutes where they are at hand."""
    now_s, timeline = optimizer.clock.monotonic_s(), optimizer.recorder.timeline
    short = timeline.over(SHORT_S, now_s) if recent is None else recent
    long = timeline.counts(LONG_S, now_s)
    return diagnose(
        Situation(
            burns=_burns(optimizer, short, long),
            stages=stages(optimizer, short),
            members=_member_sights(optimizer, short),
            pools=_pool_sights(optimizer),
            short=_traffic(short),
            long=_traffic(long),
            target=optimizer.config.alert_objective_target,
            high_load=optimizer.config.load_threshold_high,
        )
    )


def _traffic(stretch: Stretch) -> Traffic:
    return Traffic(stretch.requests, stretch.failed, stretch.refused)


def _burns(optimizer: ServerSideOptimizer, short: Stretch, long: Stretch) -> list[Burn]:
    found: list[Burn] = []
    for route, tally in long.routes.items():
        asked = optimizer.ensemble_manager.fleet.route_of(route)
        objectives = Objectives() if asked is None else asked.objectives
        found += _route_burns(route, objectives, short.routes.get(route, Tally()), tally)
    return found


def _route_burns(route: str, objectives: Objectives, short: Tally, long: Tally) -> list[Burn]:
    rows = (
        ("time to first token", objectives.time_to_first_token_s, "first_timed", "first_missed"),
        ("time per output token", objectives.time_per_output_token_s, "token_timed", "token_missed"),
        ("answered without error", None, "asked", "unanswered"),
    )
    return [
        Burn(
            route=route,
            objective=name,
            limit_s=limit_s,
            short=Share(getattr(short, timed), getattr(short, missed)),
            long=Share(getattr(long, timed), getattr(long, missed)),
        )
        for name, limit_s, timed, missed in rows
    ]


def stages(optimizer: ServerSideOptimizer, recent: Stretch) -> list[Stage]:
    """Mean seconds per stage: of the requests' own stories where they tell, else as far as can be said."""
    decode = Stage(name="decode", mean_s=recent.decode.mean_s, note="first token to last")
    return [_gateway(optimizer, recent), *_until_first(recent), decode]


def _gateway(optimizer: ServerSideOptimizer, recent: Stretch) -> Stage:
    if recent.gateway.count:
        return Stage(name="gateway", mean_s=recent.gateway.mean_s, note="body read to engine asked")
    decided_ms = optimizer.telemetry.mean_decision_ms()
    return Stage(name="gateway", mean_s=None if decided_ms is None else decided_ms / 1000.0, note="decision")


def _until_first(recent: Stretch) -> list[Stage]:
    """Queue and prefill; the queue by Little's law where no request tells, but engines say how many wait."""
    if recent.queue.count:
        return [
            Stage(name="queue", mean_s=recent.queue.mean_s, note="estimated: first token less reading"),
            Stage(name="prefill", mean_s=recent.prefill.mean_s, note="first token less queue"),
        ]
    first_s, queue_s = recent.first_token.mean_s, _queue_s(recent)
    if first_s is None or queue_s is None:
        unsplit = "" if first_s is None else f"queue and prefill together {1000 * first_s:.0f} ms"
        return [Stage(name="queue", mean_s=None, note=unsplit), Stage(name="prefill", mean_s=None)]
    return [
        Stage(name="queue", mean_s=queue_s, note="waiting over throughput"),
        Stage(name="prefill", mean_s=max(0.0, first_s - queue_s), note="first token less queue"),
    ]


def _queue_s(recent: Stretch) -> float | None:
    """Little's law: mean number waiting over answers per second, at most the time to the first token."""
    first_s = recent.first_token.mean_s
    if recent.waiting is None or not recent.requests or first_s is None:
        return None
    return min(first_s, recent.waiting * SHORT_S / recent.requests)


def _member_sights(optimizer: ServerSideOptimizer, recent: Stretch) -> list[MemberSight]:
    ensemble = optimizer.ensemble_manager
    sights = []
    for name in ensemble.fleet.active():
        answers = recent.members.get(name, Answers())
        sights.append(
            MemberSight(
                member_id=name,
                health=ensemble.beliefs[name].health.value,
                requests=answers.requests,
                failed=answers.failed,
                judged=answers.judged,
                within=answers.within,
                unread=unread(optimizer, name),
                replicas=len(ensemble.fleet.parts(name).member.replicas),
                replicas_out=outs(ensemble.beliefs[name].replicas),
            )
        )
    return sights


def unread(optimizer: ServerSideOptimizer, member_id: str) -> str:
    """Why an engine of the member cannot be read; empty where all can."""
    replicas = optimizer.ensemble_manager.fleet.parts(member_id).member.replicas
    found = (optimizer.cycle.faults.get(f"observe:{replica.replica_id}") for replica in replicas)
    return next((fault.message for fault in found if fault is not None), "")


def _pool_sights(optimizer: ServerSideOptimizer) -> list[PoolSight]:
    decision = optimizer.cycle.decision
    if decision is None:
        return []
    return [
        PoolSight(pool_id=name, load=pool.score.value, waiting=pool.metrics.queue_depth)
        for name, pool in decision.pools.items()
    ]


def _bypass(optimizer: ServerSideOptimizer) -> str:
    if optimizer.director.running:
        return "Optimisation runs; POST /v1/optimization/stop bypasses it."
    return (
        "Optimisation is BYPASSED: the default member answers untouched; POST /v1/optimization/start ends it."
    )
