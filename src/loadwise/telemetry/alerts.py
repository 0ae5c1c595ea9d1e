"""Alerts begin when a condition has held for a while, end when it has not; each is told once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from loadwise.decision.grading import Condition, Severity
from loadwise.logs import get_logger
from loadwise.ports import Alert, AlertSink, JsonObject

log = get_logger(__name__)


# Whom a condition concerns: critical ones call a person, the others wait for one.
SEVERITIES = {Severity.CRITICAL: "page", Severity.WARNING: "ticket"}


class LogSink:
    """Writes alerts to the log: pages as errors, tickets as warnings, ends as information."""

    def deliver(self, alert: Alert) -> None:
        """The alert is one line in the log."""
        write = log.info if alert.resolved else log.error if alert.severity == "page" else log.warning
        event = "alert_resolved" if alert.resolved else "alert"
        write(event, alert=alert.name, summary=alert.summary, remedy=alert.remedy, **alert.evidence)


@dataclass(slots=True)
class _Tracked:
    alert: Alert
    held: int = 0
    absent: int = 0
    fired: bool = False


class AlertBook:
    """Turns the conditions of each evaluation into alerts that begin and end.

    A condition must hold in `begin_after` evaluations in a row to begin an alert, and be absent in
    `end_after` in a row to end it; a failing sink does not keep the others from hearing.
    """

    def __init__(self, sinks: Sequence[AlertSink] = (), *, begin_after: int = 2, end_after: int = 3) -> None:
        self._sinks = tuple(sinks)
        self._begin_after = begin_after
        self._end_after = end_after
        self._tracked: dict[str, _Tracked] = {}

    def update(self, conditions: Sequence[Condition], now_s: float) -> list[Alert]:
        """The alerts that begin or end with this evaluation; the sinks have heard of them."""
        holding = {condition.name: condition for condition in conditions}
        told = [alert for c in holding.values() if (alert := self._holds(c, now_s)) is not None]
        for name in [name for name in self._tracked if name not in holding]:
            ended = self._absent(name)
            told += [] if ended is None else [ended]
        for alert in told:
            self._deliver(alert)
        return told

    def _holds(self, condition: Condition, now_s: float) -> Alert | None:
        alert = Alert(
            name=condition.name,
            severity=SEVERITIES[condition.severity],
            summary=condition.message,
            remedy=condition.remedy,
            evidence={"value": condition.value, "limit": condition.limit},
            since_s=now_s,
        )
        tracked = self._tracked.setdefault(condition.name, _Tracked(alert))
        tracked.alert = replace(alert, since_s=tracked.alert.since_s)
        tracked.held += 1
        tracked.absent = 0
        if tracked.fired or tracked.held < self._begin_after:
            return None
        tracked.fired = True
        return tracked.alert

    def _absent(self, name: str) -> Alert | None:
        tracked = self._tracked[name]
        tracked.absent += 1
        if tracked.fired and tracked.absent < self._end_after:
            return None
        del self._tracked[name]
        return replace(tracked.alert, resolved=True) if tracked.fired else None

    def _deliver(self, alert: Alert) -> None:
        for sink in self._sinks:
            try:
                sink.deliver(alert)
            except Exception:  # a sink of another's making must not silence the rest
                log.exception("alert_sink_failed", alert=alert.name, sink=type(sink).__name__)

    def active(self) -> list[Alert]:
        """Alerts that began and have not ended, longest first."""
        return sorted((t.alert for t in self._tracked.values() if t.fired), key=lambda alert: alert.since_s)

    def as_json(self) -> list[JsonObject]:
        """The active alerts for the control plane."""
        return [
            {
                "name": alert.name,
                "severity": alert.severity,
                "summary": alert.summary,
                "remedy": alert.remedy,
                "evidence": dict(alert.evidence),
            }
            for alert in self.active()
        ]
