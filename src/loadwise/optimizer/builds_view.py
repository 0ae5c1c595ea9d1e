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
