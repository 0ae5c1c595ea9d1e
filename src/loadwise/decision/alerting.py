"""Which alert rules hold now: the table of rules over the figures of a server's health.

Figures that are None are not known, and no rule fires on them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

from loadwise.decision.alert_facts import Condition, Finding, Health, Rule
from loadwise.decision.alert_rules import RULES
from loadwise.decision.facts import Policy


def conditions(
    policy: Policy, health: Health, holding: Collection[tuple[str, str]] = ()
) -> tuple[Condition, ...]:
    """What holds now, in table order; those in `holding` (rule, subject) go on a little below their limit."""
    return tuple(condition for rule in RULES for condition in _of(rule, policy, health, holding))


def _of(
    rule: Rule, policy: Policy, health: Health, holding: Collection[tuple[str, str]]
) -> Iterator[Condition]:
    limit = rule.limit(policy)
    found = {finding.subject: finding for finding in rule.find(policy, health, limit)}
    if rule.keeps < 1.0 and any(name == rule.name for name, _ in holding):
        for finding in rule.find(policy, health, limit * rule.keeps):
            if (rule.name, finding.subject) in holding:
                found.setdefault(finding.subject, finding)
    for finding in found.values():
        yield _condition(rule, finding, limit)


def _condition(rule: Rule, finding: Finding, limit: float) -> Condition:
    words = {"value": finding.value, "limit": limit, "subject": finding.subject}
    return Condition(
        name=rule.name,
        severity=rule.severity,
        value=finding.value,
        limit=limit,
        subject=finding.subject,
        message=rule.message.format(**words),
        remedy=rule.remedy.format(**words),
        undo=rule.undo.format(**words),
        evidence=finding.evidence,
        for_s=rule.for_s,
        clear_s=rule.clear_s,
    )
