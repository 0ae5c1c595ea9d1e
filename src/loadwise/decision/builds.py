"""6 plan: which build each model serves now, which one to make next, and which to give up.

Modes follow load, builds do not: a mode that is not built is served by the best one that is, and a
missing build is made in a quiet moment only, one at a time, the one that saves most for its cost first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
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
# Before it was measured: the share of a step's time that a mode saves, and seconds of computing to make it.
EXPECTED: Final[Mapping[str, tuple[float, float]]] = MappingProxyType(
    {
        "default": (0.25, 60.0),
        "reduce-overhead": (0.25, 60.0),
        "max-autotune": (0.30, 600.0),
        "openvino": (0.40, 30.0),
        "openvino-bf16": (0.50, 30.0),
        "openvino-fp16": (0.45, 30.0),
        "onnxruntime": (0.30, 40.0),
        "tensorrt": (0.50, 300.0),
    }
)
UNKNOWN_GAIN: Final = (0.20, 120.0)


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
    NOT_WORTH_IT = "not_worth_it"


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildFact:
    """One build as the compiler knows it; `stale` once the model has changed."""

    model_id: str
    mode: str
    status: BuildStatus
    changed_s: float = 0.0
    failures: int = 0
    stale: bool = False
    # Asked for by an operator: load does not end it.
    forced: bool = False
    # As measured, None before: seconds of one call, the share of the original's time that is saved, and what
    # it took to make.
    step_s: float | None = None
    gain: float | None = None
    cost_s: float | None = None


@dataclass(frozen=True, slots=True)
class BuildOption:
    """A mode that can be built here: the share of a step's time that it saves, and seconds to make it."""

    mode: str
    gain: float
    cost_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelUse:
    """How much a model is used: seconds of steps per second, and seconds until its next likely change."""

    busy_fraction: float
    steady_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildPlan:
    """Mode to serve per model ("original" where nothing fits), the build to make next (or None), and why.

    `cancel`: builds in progress that nobody forced are given up, because load has returned.
    """

    serve: Mapping[str, str]
    make: tuple[str, str] | None
    reason: BuildReason
    cancel: bool = False


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
    of its builds are worth making.
    """
    ready = {(build.model_id, build.mode): build.step_s for build in builds if _serves(build)}
    serve = {model_id: served_mode(strategy.compile_mode, model_id, ready) for model_id in members}
    if not enabled:
        return BuildPlan(serve=serve, make=None, reason=BuildReason.DISABLED)
    quiet = strategy.name is StrategyName.QUALITY and strategy.load_score is not None
    going = [build for build in builds if build.status is BuildStatus.BUILDING]
    if going:
        cancel = strategy.name is StrategyName.PERFORMANCE and not all(build.forced for build in going)
        return BuildPlan(serve=serve, make=None, reason=BuildReason.BUILDING, cancel=cancel)
    missing = [
        (model_id, option)
        for option in _options(policy, options)
        for model_id in members
        if (model_id, option.mode) not in ready
    ]
    make, reason = _next(missing, quiet, builds, uses, now_s)
    return BuildPlan(serve=serve, make=make, reason=reason)


def served_mode(wanted: str, model_id: str, ready: Mapping[tuple[str, str], float | None]) -> str:
    """The fastest of the build of `wanted` and those of other backends; else a stand-in, else "original"."""
    others = [mode for model, mode in ready if model == model_id and mode not in STAND_INS]
    own = [mode for mode in STAND_INS.get(wanted, (wanted,)) if (model_id, mode) in ready][:1]
    found = list(dict.fromkeys((*own, *others)))
    return min(found, key=lambda mode: _step_s(ready[model_id, mode]), default=ORIGINAL)


def worth(option: BuildOption, use: ModelUse | None) -> float | None:
    """Seconds of steps saved until the model changes, per second of building; None while use is unknown."""
    if use is None:
        return None
    return use.busy_fraction * use.steady_s * option.gain / option.cost_s


def _step_s(measured: float | None) -> float:
    return float("inf") if measured is None else measured


def _serves(build: BuildFact) -> bool:
    return build.status is BuildStatus.READY and not build.stale


def _options(policy: Policy, options: Sequence[BuildOption]) -> list[BuildOption]:
    """The modes that strategies may ask for, the cheapest to make first, then the others."""
    able = {option.mode: option for option in options}
    modes = dict.fromkeys(("default", policy.compile_mode, *able, "max-autotune"))
    asked = ("default", policy.compile_mode, "max-autotune")
    # Of the modes that no strategy asks for, those of a backend with modes of its own are stand-ins.
    kept = [mode for mode in modes if mode in asked or mode not in STAND_INS]
    return [able.get(mode) or BuildOption(mode, *EXPECTED.get(mode, UNKNOWN_GAIN)) for mode in kept]


def _next(
    missing: Sequence[tuple[str, BuildOption]],
    quiet: bool,
    builds: Sequence[BuildFact],
    uses: Mapping[str, ModelUse],
    now_s: float,
) -> tuple[tuple[str, str] | None, BuildReason]:
    if not missing:
        return None, BuildReason.COMPLETE
    if not quiet:
        return None, BuildReason.BUSY
    resting = {
        (b.model_id, b.mode) for b in builds if b.status is BuildStatus.FAILED and not _rested(b, now_s)
    }
    due = [(model, option) for model, option in missing if (model, option.mode) not in resting]
    if not due:
        return None, BuildReason.WAITING_AFTER_FAILURE
    values = [worth(option, uses.get(model)) for model, option in due]
    paying = [(pair, value) for pair, value in zip(due, values, strict=True) if value is None or value > 1.0]
    if not paying:
        return None, BuildReason.NOT_WORTH_IT
    # What is not known to pay less comes in its own order; `max` keeps the first of equals.
    (model_id, option), _ = max(paying, key=lambda found: 1.0 if found[1] is None else found[1])
    return (model_id, option.mode), BuildReason.MISSING


def _rested(build: BuildFact, now_s: float) -> bool:
    return now_s - build.changed_s >= RETRY_AFTER_S * 2.0 ** max(0, build.failures - 1)
