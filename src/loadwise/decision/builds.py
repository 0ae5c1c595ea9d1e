"""6 plan: which build each model serves now, which one to make next, and which to give up.

Modes follow load, builds do not: a mode that is not built is served by the best one that is, and a
missing build is made in a quiet moment only, one at a time, the one that saves most for its cost first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from types import MappingProxyType
from typing import Final

from loadwise.decision.appraisal import Appraisal, Verdict, appraise
from loadwise.decision.build_facts import (
    EXPECTED,
    UNKNOWN_GAIN,
    BuildFact,
    BuildOption,
    BuildStatus,
    ModelUse,
)
from loadwise.decision.facts import Policy, StrategyName
from loadwise.decision.strategy import Strategy

ORIGINAL: Final = "original"
# What stands in for a mode that is not built, best first; the original serves when none is.
STAND_INS: Final[Mapping[str, tuple[str, ...]]] = {
    "max-autotune": ("max-autotune", "reduce-overhead", "default"),
    "reduce-overhead": ("reduce-overhead", "default", "max-autotune"),
    "default": ("default", "reduce-overhead"),
}


class BuildReason(StrEnum):
    """Why a build is made, or none is."""

    MISSING = "missing"
    DISABLED = "disabled"
    BUSY = "busy"
    BUILDING = "building"
    COMPLETE = "complete"
    WAITING_AFTER_FAILURE = "waiting_after_failure"
    NOT_WORTH_IT = "not_worth_it"


NOTHING_HERE: Final = "No model here is loadwise's to compile: engines compile theirs when they start."
SWITCHED_OFF: Final = "enable_torch_compile is false."
_SAID: Final[Mapping[BuildReason, str]] = {
    BuildReason.MISSING: "The load is {load}, a quiet moment: what saves most for its cost is made.",
    BuildReason.BUILDING: "One build at a time.",
    BuildReason.COMPLETE: "Every build that is wanted is there.",
    BuildReason.WAITING_AFTER_FAILURE: "What is not there has failed and rests, or cannot be made now.",
    BuildReason.NOT_WORTH_IT: "What is not there would cost more than it saves.",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildPlan:
    """Mode to serve per model ("original" where nothing fits), the build to make next (or None), and why.

    `cancel`: builds in progress that nobody forced are given up, because load has returned.
    """

    serve: Mapping[str, str]
    make: tuple[str, str] | None
    reason: BuildReason
    cancel: bool = False
    # The reason in words, with the figures it rests on.
    because: str = ""
    # Every build that is not there, weighed.
    appraisals: Sequence[Appraisal] = ()


def plan(
    policy: Policy,
    strategy: Strategy,
    members: Sequence[str],
    builds: Sequence[BuildFact],
    now_s: float,
    *,
    enabled: bool = True,
    options: Sequence[BuildOption] = (),
    uses: Mapping[str, ModelUse] = MappingProxyType({}),
) -> BuildPlan:
    """The plan for the compiled models `members`, in order of importance.

    `options` are modes that can be built beside those that strategies ask for; without a model's use all
    of its builds are worth making that are not slower than what serves.
    """
    if not members:
        return BuildPlan(serve={}, make=None, reason=BuildReason.COMPLETE, because=NOTHING_HERE)
    ready = {(build.model_id, build.mode): build.step_s for build in builds if build.serves}
    serve = {model_id: served_mode(strategy.compile_mode, model_id, ready) for model_id in members}
    if not enabled:
        return BuildPlan(serve=serve, make=None, reason=BuildReason.DISABLED, because=SWITCHED_OFF)
    missing = [
        (model_id, option)
        for option in _options(policy, options)
        for model_id in members
        if (model_id, option.mode) not in ready
    ]
    found = [
        appraise(name, option, builds, uses.get(name), now_s, asked=option.mode == policy.compile_mode)
        for name, option in missing
    ]
    return _planned(policy, strategy, serve, found, builds)


def _planned(
    policy: Policy,
    strategy: Strategy,
    serve: Mapping[str, str],
    found: Sequence[Appraisal],
    builds: Sequence[BuildFact],
) -> BuildPlan:
    quiet = strategy.name is StrategyName.QUALITY and strategy.load_score is not None
    going = [build for build in builds if build.status is BuildStatus.BUILDING]
    next_one = None if going or not quiet else _next(found)
    judged = tuple(replace(one, verdict=_verdict(one, next_one, quiet)) for one in found)
    reason = BuildReason.BUILDING if going else _reason(judged, quiet)
    return BuildPlan(
        serve=serve,
        make=None if next_one is None else (next_one.model_id, next_one.mode),
        reason=reason,
        cancel=strategy.name is StrategyName.PERFORMANCE and not all(build.forced for build in going),
        because=_because(reason, policy, strategy),
        appraisals=judged,
    )


def served_mode(wanted: str, model_id: str, ready: Mapping[tuple[str, str], float | None]) -> str:
    """The fastest of the build of `wanted` and those of other backends; else a stand-in, else "original"."""
    others = [mode for model, mode in ready if model == model_id and mode not in STAND_INS]
    own = [mode for mode in STAND_INS.get(wanted, (wanted,)) if (model_id, mode) in ready][:1]
    found = list(dict.fromkeys((*own, *others)))
    return min(found, key=lambda mode: _step_s(ready[model_id, mode]), default=ORIGINAL)


def _step_s(measured: float | None) -> float:
    return float("inf") if measured is None else measured


def _options(policy: Policy, options: Sequence[BuildOption]) -> list[BuildOption]:
    """The modes that strategies may ask for, the cheapest to make first, then the others."""
    able = {option.mode: option for option in options}
    modes = dict.fromkeys(("default", policy.compile_mode, *able, "max-autotune"))
    asked = ("default", policy.compile_mode, "max-autotune")
    # Of the modes that no strategy asks for, those of a backend with modes of its own are stand-ins.
    kept = [mode for mode in modes if mode in asked or mode not in STAND_INS]
    return [able.get(mode) or BuildOption(mode, *EXPECTED.get(mode, UNKNOWN_GAIN)) for mode in kept]


def _next(found: Sequence[Appraisal]) -> Appraisal | None:
    due = [one for one in found if not one.obstacle and one.rest_s == 0.0 and one.pays]
    # What is not known to pay less comes in its own order; `max` keeps the first of equals.
    return max(due, key=lambda one: 1.0 if one.worth is None else one.worth, default=None)


def _verdict(one: Appraisal, next_one: Appraisal | None, quiet: bool) -> Verdict:
    if one.building:
        return Verdict.BUILDING
    if one.obstacle:
        return Verdict.BLOCKED
    if not one.pays:
        return Verdict.NOT_WORTH_IT
    if one.rest_s > 0.0:
        return Verdict.RESTING
    if not quiet:
        return Verdict.BUSY
    return Verdict.NEXT if one is next_one else Verdict.AFTER_OTHERS


def _reason(judged: Sequence[Appraisal], quiet: bool) -> BuildReason:
    """Why the next build is made, or why none of those that are not there."""
    verdicts = {one.verdict for one in judged}
    if not judged:
        return BuildReason.COMPLETE
    if not quiet:
        return BuildReason.BUSY
    if Verdict.NEXT in verdicts:
        return BuildReason.MISSING
    if verdicts & {Verdict.RESTING, Verdict.BLOCKED}:
        return BuildReason.WAITING_AFTER_FAILURE
    return BuildReason.NOT_WORTH_IT


def _because(reason: BuildReason, policy: Policy, strategy: Strategy) -> str:
    load = "not known" if strategy.load_score is None else f"{strategy.load_score:.2f}"
    if reason is not BuildReason.BUSY:
        return _SAID[reason].format(load=load)
    return (
        f"The load is {load} and the strategy {strategy.name.value}: builds begin in quiet moments "
        f"(strategy quality, a load below {policy.load_threshold_low:g}). force_recompile does not wait."
    )
