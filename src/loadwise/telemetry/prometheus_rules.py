"""The alert rules as Prometheus reads them: each rule of the table with its expression over our metrics."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from loadwise.decision import burn
from loadwise.decision.alert_facts import Rule
from loadwise.decision.alert_rules import RULES
from loadwise.decision.burn import Pair
from loadwise.decision.facts import Policy
from loadwise.decision.findings import TOLD_ELSEWHERE
from loadwise.telemetry import names
from loadwise.telemetry.metric import Metric

ONE = "by (job, instance)"


@dataclass(frozen=True, slots=True)
class Expression:
    """PromQL that has a result while the rule holds, and the label that names whom it concerns."""

    promql: Callable[[Policy, float], str]
    subject: str = ""


def _ratio(over: str, under: str) -> str:
    return f"{over} / {under}"


def _errors(_: Policy, limit: float) -> str:
    faults = f"sum {ONE} (rate({names.FAULTS.name}[1m]))"
    ended = f'sum {ONE} (rate({names.REQUESTS.name}{{ending!="abandoned"}}[1m]))'
    return f"{_ratio(faults, ended)} > {limit:g}"


def _latency(_: Policy, limit: float) -> str:
    name = names.REQUEST_SECONDS.name
    mean = _ratio(f"sum {ONE} (rate({name}_sum[1m]))", f"sum {ONE} (rate({name}_count[1m]))")
    return f"1000 * {mean} > {limit:g}"


def _improvement(_: Policy, limit: float) -> str:
    name, without = names.IMPROVEMENT.name, names.UNOPTIMISED.name
    below = f'{name}{{bound="high"}} < {limit:g}'
    room = f"{without} <= {1 - limit:g}"
    return f'{name}{{bound="value"}} and ignoring (bound) {below} and ignoring (bound) {room}'


def _missed(span_s: float) -> str:
    span = _span(span_s)
    missed = f"sum by (job, route) (rate({names.MISSED_OBJECTIVES.name}[{span}]))"
    within = f"sum by (job, route) (rate({names.WITHIN_OBJECTIVES.name}[{span}]))"
    return f"{missed} / ({missed} + {within})"


def _burns(policy: Policy, pair: Pair, factor: float) -> str:
    allowed = factor * (1.0 - policy.objective_target)
    judged = " + ".join(
        _counted(metric, pair.short_s) for metric in (names.MISSED_OBJECTIVES, names.WITHIN_OBJECTIVES)
    )
    missed = _counted(names.MISSED_OBJECTIVES, pair.long_s)
    both = " and ".join(f"({_missed(span_s)} > {allowed:g})" for span_s in (pair.long_s, pair.short_s))
    return f"{both} and ({judged} >= {burn.REQUESTS_NEEDED}) and ({missed} >= {pair.misses})"


def _counted(metric: Metric, span_s: float) -> str:
    return f"sum by (job, route) (increase({metric.name}[{_span(span_s)}]))"


def _burning(policy: Policy, limit: float) -> str:
    slow = burn.SLOW.factor * limit / burn.FAST.factor
    either = f"({_burns(policy, burn.FAST, limit)}) or ({_burns(policy, burn.SLOW, slow)})"
    return f"({either}) / {1.0 - policy.objective_target:g}"


def _spent(policy: Policy, limit: float) -> str:
    return f"({_burns(policy, burn.SPENT, limit)}) / {1.0 - policy.objective_target:g}"


def _queue(_: Policy, limit: float) -> str:
    return f'{names.LOAD_COMPONENT.name}{{component="queue"}} > {limit:g}'


def _above(expression: str) -> Callable[[Policy, float], str]:
    return lambda _, limit: f"{expression} > {limit:g}"


def _silent_and_serving(_: Policy, limit: float) -> str:
    return f"{names.MEMBER_SILENT.name} > {limit:g} and {names.MEMBER_ACTIVE.name} == 1"


def _out(_: Policy, limit: float) -> str:
    """Members and replicas have metrics of their own, and not every server has several replicas."""
    both = "|".join(metric.name for metric in (names.MEMBER_HEALTH, names.REPLICA_HEALTH))
    return f'sum {ONE} ({{__name__=~"{both}", health="out"}}) > {limit:g}'


def _rolled_back(_: Policy, limit: float) -> str:
    return f"increase({names.ROLLBACKS.name}[{_span(limit)}]) > 0"


def _faults(_: Policy, limit: float) -> str:
    elsewhere = "|".join(sorted(TOLD_ELSEWHERE))
    errors = f'{names.STEP_ERRORS.name}{{part!~"{elsewhere}"}}'
    return f"sum by (job, instance, part) (increase({errors}[{_span(limit)}])) > 0"


def _journal_lost(_: Policy, limit: float) -> str:
    return f"increase({names.JOURNAL_DROPPED.name}[{_span(limit)}]) > 0"


def _span(seconds: float) -> str:
    for unit, length in (("d", 86_400), ("h", 3600), ("m", 60)):
        if seconds % length == 0:
            return f"{seconds / length:g}{unit}"
    return f"{seconds:g}s"


EXPRESSIONS: Final[Mapping[str, Expression]] = {
    "high_error_rate": Expression(_errors),
    "excessive_latency": Expression(_latency),
    "low_optimization_effectiveness": Expression(_improvement),
    "ensemble_degradation": Expression(_out),
    "compilation_failure": Expression(_above(names.FAILED_BUILDS.name), "model"),
    "objectives_burning": Expression(_burning, "route"),
    "objectives_spent": Expression(_spent, "route"),
    "queue_saturation": Expression(_queue, "pool"),
    "stale_engine_metrics": Expression(_above(names.READING_AGE.name), "replica"),
    "sensors_stale": Expression(_above(f"min by (job, instance, pool) ({names.READING_AGE.name})"), "pool"),
    "loop_stale": Expression(_above(names.DECISION_AGE.name)),
    "silent_member": Expression(_above(names.MEMBER_SILENT.name), "member"),
    "silent_replica": Expression(_above(names.REPLICA_SILENT.name), "replica"),
    "silent_member_serving": Expression(_silent_and_serving, "member"),
    "configuration_rolled_back": Expression(_rolled_back),
    "rollout_taken_back": Expression(lambda *_: f"{names.ROLLOUTS_BACK.name} > 0", "rollout"),
    "optimizer_fault": Expression(_faults, "part"),
    "journal_losing": Expression(_journal_lost),
    "monitoring_failed": Expression(_above(names.MONITORING_AGE.name)),
}


class _Figure:
    """Stands in a message for the figure of the moment, in Prometheus' template language."""

    def __format__(self, spec: str) -> str:
        if spec.endswith("%"):
            return "{{ $value | humanizePercentage }}"
        return '{{ printf "%' + (spec or ".3g") + '" $value }}'


def _text(template: str, subject: str, limit: float) -> str:
    named = f"{{{{ $labels.{subject} }}}}" if subject else "the latest version"
    return template.format(value=_Figure(), limit=limit, subject=named)


def _rule(policy: Policy, rule: Rule) -> dict[str, Any]:
    expression, limit = EXPRESSIONS[rule.name], rule.limit(policy)
    words = {"summary": rule.message, "remedy": rule.remedy, "undo": rule.undo}
    return {
        "alert": f"loadwise_{rule.name}",
        "expr": expression.promql(policy, limit),
        "for": f"{rule.for_s:g}s",
        "keep_firing_for": f"{rule.clear_s:g}s",
        "labels": {"severity": rule.severity.value, "service": "loadwise"},
        "annotations": {name: _text(text, expression.subject, limit) for name, text in words.items()},
    }


def rule_file(policy: Policy) -> dict[str, Any]:
    """The rule file's content with the thresholds of a policy."""
    return {
        "groups": [
            {"name": "loadwise", "interval": "5s", "rules": [_rule(policy, rule) for rule in RULES]},
        ]
    }
