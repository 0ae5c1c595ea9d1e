"""Alerts begin once a condition has held for its time, and end once it was gone for its own; each is told."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace

from loadwise.decision.alert_facts import Condition
from loadwise.logs import get_logger
from loadwise.ports import Alert, AlertSink, JsonObject

log = get_logger(__name__)


class LogSink:
    """Writes alerts to the log: pages as errors, tickets as warnings, ends as information."""

    def deliver(self, alert: Alert) -> None:
        """The alert is one line in the log."""
        write = log.info if alert.resolved else log.error if alert.severity == "page" else log.warning
        event = "alert_resolved" if alert.resolved else "alert"
        said = {"summary": alert.summary, "remedy": alert.remedy, "undo": alert.undo}
        write(event, alert=alert.name, subject=alert.subject, **said, evidence=dict(alert.evidence))


@dataclass(slots=True)
class _Tracked:
    alert: Alert
    condition: Condition
    # When it began to hold, and when it was last seen.
    held_from_s: float
    seen_s: float
    fired: bool = False


class AlertBook:
    """Turns the conditions of each evaluation into alerts that begin and end.

    A condition begins an alert after it held for its `for_s` without a break, and ends it after it was
    gone for its `clear_s`. A failing sink does not keep the others from hearing.
    """

    def __init__(self, sinks: Sequence[AlertSink] = ()) -> None:
        self._sinks = tuple(sinks)
        # Hears of every sink that failed.
        self.on_sink_failed: Callable[[], None] = lambda: None
        self._tracked: dict[tuple[str, str], _Tracked] = {}

    def add(self, sinks: Sequence[AlertSink]) -> None:
        """These hear of alerts too."""
        self._sinks += tuple(sinks)

    def holding(self) -> Collection[tuple[str, str]]:
        """Name and subject of every alert that began and has not ended."""
        return {key for key, tracked in self._tracked.items() if tracked.fired}

    def update(self, conditions: Sequence[Condition], now_s: float, wall_s: float) -> list[Alert]:
        """The alerts that begin or end with this evaluation; the sinks have heard of them."""
        now = {condition.key: condition for condition in conditions}
        told = [alert for c in now.values() if (alert := self._holds(c, now_s, wall_s)) is not None]
        for key in [key for key in self._tracked if key not in now]:
            ended = self._absent(key, now_s)
            told += [] if ended is None else [ended]
        for alert in told:
            self._deliver(alert)
        return told

    def _holds(self, condition: Condition, now_s: float, wall_s: float) -> Alert | None:
        alert = _alert(condition, wall_s)
        tracked = self._tracked.setdefault(condition.key, _Tracked(alert, condition, now_s, now_s))
        tracked.alert = replace(alert, since_s=tracked.alert.since_s)
        tracked.condition, tracked.seen_s = condition, now_s
        if tracked.fired or now_s - tracked.held_from_s < condition.for_s:
            return None
        tracked.fired = True
        return tracked.alert

    def _absent(self, key: tuple[str, str], now_s: float) -> Alert | None:
        tracked = self._tracked[key]
        if tracked.fired and now_s - tracked.seen_s < tracked.condition.clear_s:
            return None
        del self._tracked[key]
        return replace(tracked.alert, resolved=True) if tracked.fired else None

    def _deliver(self, alert: Alert) -> None:
        for sink in self._sinks:
            try:
                sink.deliver(alert)
            except Exception:  # a sink of another's making must not silence the rest
                log.exception("alert_sink_failed", alert=alert.name, sink=type(sink).__name__)
                self.on_sink_failed()

    def active(self) -> list[Alert]:
        """Alerts that began and have not ended, longest first."""
        return sorted((t.alert for t in self._tracked.values() if t.fired), key=lambda alert: alert.since_s)

    def as_json(self) -> list[JsonObject]:
        """The active alerts for the control plane."""
        return [alert_json(alert) for alert in self.active()]


def _alert(condition: Condition, wall_s: float) -> Alert:
    return Alert(
        name=condition.name,
        severity=condition.severity.value,
        subject=condition.subject,
        summary=condition.message,
        remedy=condition.remedy,
        undo=condition.undo,
        evidence={"value": condition.value, "limit": condition.limit, **condition.evidence},
        since_s=wall_s,
    )


def alert_json(alert: Alert) -> JsonObject:
    """An alert as people and programs read it."""
    return {
        "name": alert.name,
        "severity": alert.severity,
        "subject": alert.subject,
        "summary": alert.summary,
        "remedy": alert.remedy,
        "undo": alert.undo,
        "evidence": dict(alert.evidence),
        "since_s": alert.since_s,
    }
