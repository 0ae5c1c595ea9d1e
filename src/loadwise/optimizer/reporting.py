"""The performance report as a whole: the origin's keys, then trends, objectives met, changes and advice."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from loadwise.clock import iso_utc
from loadwise.decision.advice import Advice, Figures, MemberFigures, advise
from loadwise.optimizer import live, views
from loadwise.optimizer.situation import diagnosis
from loadwise.optimizer.undoing import changes
from loadwise.optimizer.watch import failed_builds
from loadwise.ports import JsonObject
from loadwise.telemetry.night import objective_text
from loadwise.telemetry.stretches import Answers, Stretch
from loadwise.telemetry.timeline import TRACKS

if TYPE_CHECKING:
    from loadwise.optimizer.server_side_optimizer import ServerSideOptimizer

DAY_S: Final = 86_400.0
# A track with fewer points shows no trend: a finer one is taken.
POINTS_WANTED: Final = 12


def report(optimizer: ServerSideOptimizer) -> JsonObject:
    """The performance report; what was not measured is None."""
    day = optimizer.recorder.timeline.over(DAY_S, optimizer.clock.monotonic_s())
    config = optimizer.config
    return {
        **views.report(optimizer),
        "thresholds": {"high": config.load_threshold_high, "low": config.load_threshold_low},
        "latency": live.latency_json(day),
        "objectives_met": objectives_met(optimizer),
        "trend": trend(optimizer),
        "changes": changes(optimizer),
        "advice": [
            {"setting": found.setting, "change": found.change, "evidence": found.evidence}
            for found in advice(optimizer, day)
        ],
    }


def objectives_met(optimizer: ServerSideOptimizer) -> list[JsonObject]:
    """Per route and objective, the share of the last hour's requests that met it."""
    return [
        {
            "route": burn.route,
            "objective": objective_text(burn),
            "met": 1.0 - burn.long.missed / burn.long.judged if burn.long.judged else None,
            "requests": burn.long.judged,
        }
        for burn in diagnosis(optimizer).burns
    ]


def trend(optimizer: ServerSideOptimizer) -> JsonObject:
    """The coarsest track that has enough points to show a trend, with times as ISO 8601."""
    tracks = live.tracks(optimizer)
    names = [f"{step_s * size:g}" for step_s, size in reversed(TRACKS)]
    chosen = next((name for name in names if len(tracks[name]["points"]) >= POINTS_WANTED), names[-1])
    track = tracks[chosen]
    return {
        "step_s": track["step_s"],
        "points": [{"time": iso_utc(point["t"]), **point} for point in track["points"]],
    }


def advice(optimizer: ServerSideOptimizer, day: Stretch) -> Sequence[Advice]:
    """What the figures of a day speak for."""
    ensemble, config = optimizer.ensemble_manager, optimizer.config
    gain = optimizer.recorder.improvement()
    route = ensemble.fleet.routes.get("auto")
    return advise(
        Figures(
            requests=day.judged,
            within_fraction=day.within / day.judged if day.judged else None,
            high_load=config.load_threshold_high,
            time_high_fraction=_time_high(optimizer),
            members=[_member(optimizer, name, day) for name in ensemble.fleet.active()],
            standby=ensemble.fleet.standby() if route is not None else (),
            max_ensemble_size=config.max_ensemble_size,
            allow_degrade=config.allow_degrade,
            ensemble=config.enable_ensemble,
            block_share=config.experiment.block_share,
            gain_low=None if gain is None else gain.low,
            gain_high=None if gain is None else gain.high,
            failed_builds=sorted(failed_builds(optimizer.model_compiler.compilation_stats)),
        )
    )


def _time_high(optimizer: ServerSideOptimizer) -> float | None:
    """The share of the day's stretches with load at or above the high threshold."""
    points = trend(optimizer)["points"]
    loads = [point["load"] for point in points if point["load"] is not None]
    high = optimizer.config.load_threshold_high
    return sum(load >= high for load in loads) / len(loads) if loads else None


def _member(optimizer: ServerSideOptimizer, name: str, day: Stretch) -> MemberFigures:
    answers = day.members.get(name, Answers())
    belief = optimizer.ensemble_manager.beliefs[name]
    return MemberFigures(
        member_id=name,
        quality=belief.quality,
        weight=optimizer.ensemble_manager.fleet.parts(name).member.weight,
        requests=answers.judged,
        within_fraction=answers.within / answers.judged if answers.judged else None,
    )
