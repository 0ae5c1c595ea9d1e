"""6 plan: which build each model serves now, and which one to make next.

Modes follow load, builds do not: a mode that is not built is served by the best one that is, and a
missing build is made in a quiet moment only, one at a time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from loadwise.decision.facts import Policy, StrategyName
from loadwise.decision.strategy import Strategy

ORIGINAL: Final = "original"
# What stands in for a mode that is not built, best first; the original serves when none is.
STAND_INS: Final[Mapping[str, tuple[str, ...]]] = {
    "max-autotune": ("max-autotune", "reduce-overhead", "default"),
    "reduce-overhead": ("reduce-overhead", "default", "max-autotune"),
    "default": ("default", "reduce-overhead"),
}
# A build that failed is not tried again before this much time, doubled for each failure.
RETRY_AFTER_S: Final = 600.0


class BuildStatus(StrEnum):
    """How far a build has come."""

    READY = "ready"
    BUILDING = "building"
    FAILED = "failed"


class BuildReason(StrEnum):
    """Why a build is made, or none is."""

    MISSING = "missing"
    DISABLED = "disabled"
    BUSY = "busy"
    BUILDING = "building"
    COMPLETE = "complete"
    WAITING_AFTER_FAILURE = "waiting_after_failure"


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildFact:
    """One build as the compiler knows it; `parameters_version` must be the model's present one to serve."""

    model_id: str
    mode: str
    status: BuildStatus
    changed_s: float = 0.0
    failures: int = 0
    stale: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildPlan:
    """Mode to serve per model ("original" where nothing fits), the build to make next (or None), and why."""

    serve: Mapping[str, str]
    make: tuple[str, str] | None
    reason: BuildReason


def plan(
    policy: Policy,
    strategy: Strategy,
    members: Sequence[str],
    builds: Sequence[BuildFact],
    now_s: float,
    *,
    enabled: bool = True,
) -> BuildPlan:
    """The plan for the compiled models `members`, in order of importance."""
    ready = {(build.model_id, build.mode) for build in builds if _serves(build)}
    serve = {model_id: served_mode(strategy.compile_mode, model_id, ready) for model_id in members}
    make, reason = (
        _next(policy, strategy, members, builds, ready, now_s) if enabled else (None, BuildReason.DISABLED)
    )
    return BuildPlan(serve=serve, make=make, reason=reason)


def served_mode(wanted: str, model_id: str, ready: set[tuple[str, str]]) -> str:
    """The best built mode in place of `wanted`, or "original"."""
    for mode in STAND_INS.get(wanted, (wanted,)):
        if (model_id, mode) in ready:
            return mode
    return ORIGINAL


def _serves(build: BuildFact) -> bool:
    return build.status is BuildStatus.READY and not build.stale


def _next(
    policy: Policy,
    strategy: Strategy,
    members: Sequence[str],
    builds: Sequence[BuildFact],
    ready: set[tuple[str, str]],
    now_s: float,
) -> tuple[tuple[str, str] | None, BuildReason]:
    if any(build.status is BuildStatus.BUILDING for build in builds):
        return None, BuildReason.BUILDING
    missing = [(model, mode) for mode in _modes(policy) for model in members if (model, mode) not in ready]
    if not missing:
        return None, BuildReason.COMPLETE
    if strategy.name is not StrategyName.QUALITY or strategy.load_score is None:
        return None, BuildReason.BUSY
    resting = {
        (b.model_id, b.mode) for b in builds if b.status is BuildStatus.FAILED and not _rested(b, now_s)
    }
    due = [build for build in missing if build not in resting]
    return (due[0], BuildReason.MISSING) if due else (None, BuildReason.WAITING_AFTER_FAILURE)


def _modes(policy: Policy) -> tuple[str, ...]:
    """The modes that strategies may ask for, the cheapest to make first."""
    return tuple(dict.fromkeys(("default", policy.compile_mode, "max-autotune")))


def _rested(build: BuildFact, now_s: float) -> bool:
    return now_s - build.changed_s >= RETRY_AFTER_S * 2.0 ** max(0, build.failures - 1)
