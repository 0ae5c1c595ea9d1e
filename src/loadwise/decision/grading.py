"""Grades and recommendations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from loadwise.decision.alert_facts import Health
from loadwise.decision.alerting import conditions
from loadwise.decision.facts import Policy, StrategyName


@dataclass(frozen=True, slots=True, kw_only=True)
class GradeRow:
    """A grade, the least share of successes and the most average latency in ms that earn it."""

    grade: str
    success_fraction: float
    avg_latency_ms: float


# The origin's table; the first row that is met counts, and none is D.
GRADES: Final = (
    GradeRow(grade="A+", success_fraction=0.99, avg_latency_ms=100.0),
    GradeRow(grade="A", success_fraction=0.95, avg_latency_ms=200.0),
    GradeRow(grade="B", success_fraction=0.90, avg_latency_ms=500.0),
    GradeRow(grade="C", success_fraction=0.80, avg_latency_ms=float("inf")),
)


def grade(success_fraction: float | None, avg_latency_ms: float | None) -> str | None:
    """The origin's grade, borders included; None while there is no answer to grade."""
    if success_fraction is None:
        return None
    for row in GRADES:
        slow = avg_latency_ms is None or avg_latency_ms > row.avg_latency_ms
        if success_fraction >= row.success_fraction and (not slow or row.avg_latency_ms == float("inf")):
            return row.grade
    return "D"


def recommendations(
    policy: Policy, health: Health, strategy: StrategyName | None, within_objectives: float | None
) -> tuple[str, ...]:
    """What an operator could do, most urgent first; empty when nothing suggests itself."""
    found = list(dict.fromkeys(condition.remedy for condition in conditions(policy, health)))
    if strategy is StrategyName.PERFORMANCE and within_objectives is not None and within_objectives < 0.95:
        found.append("Load is high and objectives are missed: add replicas, or a faster member.")
    if health.members == 1:
        found.append("One member cannot adapt: add a faster or a better one to the ensemble.")
    return tuple(found)
