"""The proof of improvement as JSON: the gain, its interval and parts, and what else was compared."""

from __future__ import annotations

from typing import Any, Final

from loadwise.decision.comparison import Compared
from loadwise.decision.improvement import FIRST_LOOK, Gains, Improvement
from loadwise.decision.intervals import CONFIDENCE, Interval
from loadwise.optimizer.experiments import Experiments
from loadwise.optimizer.tallies import Measure
from loadwise.ports import JsonObject
from loadwise.settings.experiments import ExperimentSettings

GOODPUT: Final = (
    "value",
    "low",
    "high",
    "optimised_fraction",
    "unoptimised_fraction",
    "if_suspended_within",
    "requests",
)


def improvement_json(experiments: Experiments, settings: ExperimentSettings) -> JsonObject:
    """Everything that experiments found; a figure is None before its first look."""
    found = experiments.gains()
    return {
        **_goodput(found.goodput),
        "confidence": CONFIDENCE,
        # Optimised over unoptimised, geometric means; below 1 is faster.
        "latency_ratios": {
            "time_to_first_token": interval_json(found.time_to_first_token),
            "time_per_output_token": interval_json(found.time_per_output_token),
            "whole_latency": interval_json(found.whole_latency),
        },
        "blocks": _blocks(found, experiments, settings),
        "conversations": {
            "share": settings.conversation_share,
            "routes": {
                route: {measure.value: compared_json(tallies.compared(measure)) for measure in Measure}
                for route, tallies in experiments.conversations().items()
            },
        },
    }


def interval_json(interval: Interval | None) -> JsonObject | None:
    """Value and ends."""
    if interval is None:
        return None
    return {"value": interval.value, "low": interval.low, "high": interval.high}


def compared_json(found: Compared) -> JsonObject:
    """Both means, how many requests they rest on, and the difference."""
    return {
        "optimised": found.optimised,
        "unoptimised": found.unoptimised,
        "requests_optimised": found.requests_optimised,
        "requests_unoptimised": found.requests_unoptimised,
        "difference": interval_json(found.difference),
    }


def _goodput(found: Improvement | None) -> JsonObject:
    shown: dict[str, Any] = {name: None if found is None else getattr(found, name) for name in GOODPUT}
    return shown


def _blocks(found: Gains, experiments: Experiments, settings: ExperimentSettings) -> JsonObject:
    schedule = settings.schedule()
    return {
        "share": settings.block_share,
        "seconds": schedule.block_s,
        "burn_in_seconds": schedule.burn_in_s,
        "strata": found.strata,
        "first_look_at_strata": FIRST_LOOK,
        "stratum_seconds": schedule.block_s * schedule.stratum.denominator,
        "unoptimised": found.control_blocks,
        "suspended": found.suspended_blocks,
        # Requests that were open when the process died.
        "lost_requests": found.lost_requests,
        "now": experiments.now() if settings.block_share else None,
    }
