"""What is told of builds: to people in plain values, to the planner as facts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from loadwise.compiler.build import Build, BuildState
from loadwise.compiler.served import ServedModel
from loadwise.decision.build_facts import EXPECTED, UNKNOWN_GAIN, BuildFact, BuildStatus

_STATUSES = {
    BuildState.PROMOTED: BuildStatus.READY,
    BuildState.BUILDING: BuildStatus.BUILDING,
    BuildState.FAILED: BuildStatus.FAILED,
    BuildState.DECLINED: BuildStatus.FAILED,
}


def model_stats(served: ServedModel) -> dict[str, Any]:
    """One model: what serves it and how fast, else the latest build, and every build's own figures."""
    builds = dict(served.builds)
    active = served.active
    if active is not None and active.stale:
        active = None
    shown = active or max(builds.values(), key=_recency, default=Build(mode="", state=BuildState.ORIGINAL))
    stats = shown.stats()
    if not stats["cause"]:
        stats |= {"cause": served.cause, "remedy": served.remedy}
    return {
        "mode": None if active is None else active.mode,
        **stats,
        "builds": {mode: build.stats() for mode, build in builds.items()},
    }


def original_s(served: ServedModel) -> float | None:
    """Seconds of a call of the original, as the latest build measured it; None before any did."""
    timings = [build.timing for build in dict(served.builds).values() if build.timing is not None]
    return timings[-1].original_s if timings else None


def pending_builds(models: Sequence[ServedModel], now_s: float) -> list[dict[str, Any]]:
    """Builds that wait or run, in the order they were asked for, with what making them took so far.

    `usual_s` is what it took the last time, or takes other models, where nobody else wants the processor.
    """
    pending = [(served, build) for served in models for build in list(served.pending.values())]
    return [
        {
            "id": build.build_id,
            "model": served.model_id,
            "backend": build.backend,
            "mode": build.mode,
            "state": build.state.value,
            "stage": build.stage.value,
            "forced": build.forced,
            "elapsed_s": now_s - build.changed_s,
            "computed_s": build.computed_s,
            "usual_s": _usual_s(served, build.mode),
        }
        for served, build in sorted(pending, key=lambda pair: pair[1].changed_s)
    ]


def _usual_s(served: ServedModel, mode: str) -> float:
    last = served.builds.get(mode)
    known = None if last is None else last.cost_s
    return EXPECTED.get(mode, UNKNOWN_GAIN)[1] if known is None else known


def build_facts(served: ServedModel, modes: Sequence[str], now_s: float, obstacle: str) -> list[BuildFact]:
    """Every build of a model; where an `obstacle` is named, what was never made counts as just failed."""
    made = {mode: build for mode, build in dict(served.builds).items() if build.state in _STATUSES}
    facts = [_fact(served.model_id, build) for build in made.values()]
    facts += [
        _fact(served.model_id, build) for build in list(served.pending.values()) if build.mode not in made
    ]
    if obstacle:
        facts += [_blocked(served.model_id, mode, now_s, obstacle) for mode in modes if mode not in made]
    return facts


def declined_facts(declined: Mapping[str, Build], modes: Sequence[str], now_s: float) -> list[BuildFact]:
    """Models that are not modules at all."""
    return [_blocked(name, mode, now_s, build.cause) for name, build in declined.items() for mode in modes]


def _recency(build: Build) -> tuple[bool, float]:
    """A build that was stopped tells nothing, so any other one is told before it."""
    return build.state is not BuildState.ORIGINAL, build.changed_s


def _fact(model_id: str, build: Build) -> BuildFact:
    timing = build.timing
    return BuildFact(
        model_id=model_id,
        mode=build.mode,
        status=_STATUSES.get(build.state, BuildStatus.BUILDING),
        changed_s=build.changed_s,
        failures=build.failures,
        stale=build.stale,
        forced=build.forced,
        step_s=build.step_s,
        gain=None if timing is None else 1.0 - timing.compiled_s / timing.original_s,
        cost_s=build.cost_s,
    )


def _blocked(model_id: str, mode: str, now_s: float, obstacle: str) -> BuildFact:
    return BuildFact(
        model_id=model_id,
        mode=mode,
        status=BuildStatus.FAILED,
        changed_s=now_s,
        failures=1,
        obstacle=obstacle,
    )
