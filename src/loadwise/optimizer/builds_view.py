"""Builds as the status shows them: which are being made, why one is or none, and what each would gain."""

from __future__ import annotations

from loadwise.compiler import ModelCompiler
from loadwise.decision.appraisal import Appraisal
from loadwise.decision.builds import BuildPlan
from loadwise.ports import JsonObject


def builds_json(compiler: ModelCompiler, plan: BuildPlan | None) -> JsonObject:
    """Progress, the latest plan (None before the first) with its figures, and why nothing is kept."""
    return {
        "in_progress": compiler.in_progress(),
        "plan": None if plan is None else plan.reason.value,
        "because": None if plan is None else plan.because,
        "weighed": None if plan is None else [_weighed(one) for one in plan.appraisals],
        "not_kept": compiler.store_problem or None,
    }


def builds_lines(compiler: ModelCompiler, plan: BuildPlan | None) -> list[str]:
    """What serves each compiled model, what is being made, and why; empty where loadwise compiles none."""
    found = compiler.compilation_stats
    lines = [f"{name}: {_serving(stats)}" for name, stats in found.items()]
    lines += [_going(build) for build in compiler.in_progress()]
    if plan is not None and lines:
        lines.append(plan.because)
    return lines


def _serving(stats: JsonObject) -> str:
    if stats["mode"] is not None:
        return f"{stats['mode']}, {stats['speedup']:.2f} times as fast as the original when it was measured"
    because = f": {stats['cause'].rstrip('.')}. {stats['remedy']}" if stats["cause"] else ""
    return f"as it was loaded ({stats['state']}{because})"


def _going(build: JsonObject) -> str:
    asked = "forced" if build["forced"] else "planned"
    return (
        f"{build['id']}: {build['stage']} ({asked} {build['elapsed_s']:.0f} s ago; "
        f"{build['computed_s']:.0f} s computed of usually {build['usual_s']:.0f})"
    )


def _weighed(one: Appraisal) -> JsonObject:
    return {
        "model": one.model_id,
        "mode": one.mode,
        "verdict": one.verdict.value,
        "said": one.sentence,
        "gain": one.gain,
        "served_gain": one.served_gain,
        "measured": one.measured,
        "cost_s": one.cost_s,
        "busy_fraction": None if one.use is None else one.use.busy_fraction,
        "steady_s": None if one.use is None else one.use.steady_s,
        "saves_s": one.saves_s,
        "worth": one.worth,
        "rest_s": one.rest_s,
    }
