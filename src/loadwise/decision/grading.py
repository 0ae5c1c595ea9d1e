"""Grades, alert conditions and recommendations, each as a table."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from loadwise.decision.facts import Evidence, Policy, StrategyName
from loadwise.decision.improvement import Improvement


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


class Severity(StrEnum):
    """How soon a person should look."""

    WARNING = "warning"
    CRITICAL = "critical"


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """A rule that holds now: its name, the figure and the limit it passed, and what to do."""

    name: str
    severity: Severity
    value: float
    limit: float
    message: str
    remedy: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """The figures that alert rules read; None is "not known", and no rule fires on it."""

    error_fraction: float | None = None
    avg_latency_ms: float | None = None
    improvement: Improvement | None = None
    # Members that should serve, and those that are out.
    members: int = 0
    members_out: Sequence[str] = ()
    # Models whose last build failed, with the reason.
    failed_builds: Mapping[str, str] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """An alert rule: `value` is None while it does not hold."""

    name: str
    severity: Severity
    value: Callable[[Policy, Health], float | None]
    limit: Callable[[Policy], float]
    message: str
    remedy: str


def _errors(policy: Policy, health: Health) -> float | None:
    value = health.error_fraction
    return value if value is not None and value > policy.error_rate_alert else None


def _latency(policy: Policy, health: Health) -> float | None:
    value = health.avg_latency_ms
    return value if value is not None and value > policy.latency_alert_ms else None


def _improvement(policy: Policy, health: Health) -> float | None:
    gained = health.improvement
    if gained is None:
        return None
    room = 1.0 - gained.unoptimised_fraction >= policy.improvement_alert
    return gained.value if room and gained.high < policy.improvement_alert else None


def _members_out(_: Policy, health: Health) -> float | None:
    return float(len(health.members_out)) if health.members_out else None


def _builds(_: Policy, health: Health) -> float | None:
    return float(len(health.failed_builds)) if health.failed_builds else None


RULES: Final = (
    Rule(
        name="high_error_rate",
        severity=Severity.CRITICAL,
        value=_errors,
        limit=lambda policy: policy.error_rate_alert,
        message="{value:.1%} of recent requests failed (limit {limit:.0%}).",
        remedy="Look at the members' error rates in /v1/optimization/ensemble and at the engines' logs.",
    ),
    Rule(
        name="excessive_latency",
        severity=Severity.WARNING,
        value=_latency,
        limit=lambda policy: policy.latency_alert_ms,
        message="Answers took {value:.0f} ms on average (limit {limit:.0f} ms).",
        remedy="Compare with the share within objectives: long answers take long. If that is low, add "
        "capacity or let faster members answer.",
    ),
    Rule(
        name="low_optimization_effectiveness",
        severity=Severity.WARNING,
        value=_improvement,
        limit=lambda policy: policy.improvement_alert,
        message="Optimisation gained {value:.1%} of requests within objectives (limit {limit:.0%}).",
        remedy="Check that a faster member is active and that its quality is known.",
    ),
    Rule(
        name="ensemble_degradation",
        severity=Severity.CRITICAL,
        value=_members_out,
        limit=lambda _: 0.0,
        message="{value:.0f} members are out of rotation.",
        remedy="They are probed and return by themselves; see their error rates and the engines' logs.",
    ),
    Rule(
        name="compilation_failure",
        severity=Severity.WARNING,
        value=_builds,
        limit=lambda _: 0.0,
        message="The last build of {value:.0f} models failed; the originals serve.",
        remedy="The compilation statistics say why; repeat with /v1/optimization/force_recompile.",
    ),
)


def conditions(policy: Policy, health: Health) -> tuple[Condition, ...]:
    """The rules that hold now, in table order."""
    found = []
    for rule in RULES:
        value = rule.value(policy, health)
        if value is not None:
            limit = rule.limit(policy)
            message = rule.message.format(value=value, limit=limit)
            found.append(
                Condition(
                    name=rule.name,
                    severity=rule.severity,
                    value=value,
                    limit=limit,
                    message=message,
                    remedy=rule.remedy,
                )
            )
    return tuple(found)


def recommendations(
    policy: Policy, health: Health, strategy: StrategyName | None, within_objectives: float | None
) -> tuple[str, ...]:
    """What an operator could do, most urgent first; empty when nothing suggests itself."""
    found = [condition.remedy for condition in conditions(policy, health)]
    if strategy is StrategyName.PERFORMANCE and within_objectives is not None and within_objectives < 0.95:
        found.append("Load is high and objectives are missed: add replicas, or a faster member.")
    if health.members == 1:
        found.append("One member cannot adapt: add a faster or a better one to the ensemble.")
    return tuple(found)


def evidence(found: Sequence[Condition]) -> tuple[Evidence, ...]:
    """Conditions as evidence for a decision's record."""
    return tuple(Evidence(name=rule.name, value=rule.value, note=rule.message) for rule in found)
