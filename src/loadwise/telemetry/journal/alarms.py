"""Which alerts the time of a journal gives cause for: its rows replayed through the alert rules of now.

What a journal does not hold raises no alert here: builds, the measured gain, errors that serving survived,
another's monitoring, and whether the loop stood still (a gap may be a restart).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Final

from loadwise.clock import iso_utc
from loadwise.decision import beliefs
from loadwise.decision.alert_facts import Health, Rollback, Severity
from loadwise.decision.alerting import conditions
from loadwise.decision.facts import Policy
from loadwise.decision.fault import ours
from loadwise.decision.replicas import outs
from loadwise.decision.rollout import HARMS
from loadwise.decision.step import Decision
from loadwise.ports import Alert, JsonObject
from loadwise.telemetry.alerts import AlertBook
from loadwise.telemetry.journal import records
from loadwise.telemetry.journal.changes import REGRESSION, Change, ChangeKind
from loadwise.telemetry.journal.follower import Follower
from loadwise.telemetry.journal.reader import Batch
from loadwise.telemetry.journal.replay import Replayed, followed
from loadwise.telemetry.objectives import ObjectiveCounts
from loadwise.telemetry.window import ServiceWindow

WEEK_S: Final = 7 * 86_400.0


@dataclass(slots=True)
class Alarms:
    """What began and ended when (wall seconds), over which time, by how many looks."""

    told: list[tuple[float, Alert]] = field(default_factory=list)
    looks: int = 0
    first_s: float | None = None
    last_s: float | None = None

    @property
    def fired(self) -> list[Alert]:
        """The alerts that began."""
        return [alert for _, alert in self.told if not alert.resolved]

    @property
    def pages(self) -> list[Alert]:
        """Those that call a person."""
        return [alert for alert in self.fired if alert.severity == Severity.PAGE.value]

    def as_json(self) -> JsonObject:
        """The time, how much of it is told of, and every alert with its beginning and end."""
        spans = 0.0 if self.first_s is None or self.last_s is None else self.last_s - self.first_s
        return {
            "from": None if self.first_s is None else iso_utc(self.first_s),
            "to": None if self.last_s is None else iso_utc(self.last_s),
            "weeks": spans / WEEK_S,
            "looks": self.looks,
            "pages": len(self.pages),
            "tickets": len(self.fired) - len(self.pages),
            "alerts": list(self._shown()),
        }

    def _shown(self) -> Iterator[dict[str, Any]]:
        for at_s, alert in self.told:
            if not alert.resolved:
                ends = (s for s, each in self.told if s > at_s and each.resolved and _same(each, alert))
                end_s = next(ends, None)
                yield {
                    "alert": alert.name,
                    "severity": alert.severity,
                    "subject": alert.subject,
                    "began": iso_utc(at_s),
                    "ended": None if end_s is None else iso_utc(end_s),
                    "summary": alert.summary,
                }


def _same(one: Alert, other: Alert) -> bool:
    return (one.name, one.subject) == (other.name, other.subject)


def alarms(batches: Iterable[Batch], policy: Policy | None = None, changes: Iterable[Change] = ()) -> Alarms:
    """The alerts at each step of the loop, with the journal's own thresholds or those of another policy.

    `changes` are the journal's, oldest first: of configurations and rollouts that were taken back.
    """
    looking = _Looking(policy, changes)
    for follower, row in followed(looking.timed(batches), Replayed()):
        looking.take(follower, row)
    return looking.found


class _Looking:
    """Follows rows in wall time, for restarts begin the other clock anew."""

    def __init__(self, policy: Policy | None, changes: Iterable[Change]) -> None:
        self.found = Alarms()
        self._policy = policy
        self._coming = deque(changes)
        self._rollback: Change | None = None
        self._rollouts_back: dict[str, float] = {}
        self._offset_s = 0.0
        self._book = AlertBook()
        self._window = ServiceWindow()
        self._counts = ObjectiveCounts()
        self._lost_s: float | None = None

    def timed(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """The batches; each one's clock is known while its rows are followed."""
        for batch in batches:
            self._offset_s = batch.offset_s
            yield batch

    def take(self, follower: Follower, row: records.Record) -> None:
        """One row has happened."""
        match row:
            case records.Step():
                policy = self._policy or follower.policies[row.policy]
                self._look(policy, row, follower.stepped(row), follower)
                return
            case records.Ended():
                self._ended(row)
            case records.TurnedAway() if row.model is not None and ours(row.status):
                self._counts.note(row.model, False, row.now_s + self._offset_s)
            case records.Dropped():
                self._lost_s = row.now_s + self._offset_s
        follower.take(row)

    def _ended(self, row: records.Ended) -> None:
        at_s = row.outcome.finished_s + self._offset_s
        self._window.add(replace(row.outcome, finished_s=at_s))
        if row.started_s is not None:
            self._counts.note(row.outcome.route, row.within, at_s)

    def _look(self, policy: Policy, row: records.Step, decision: Decision, follower: Follower) -> None:
        found, now_s = self.found, row.observation.now_s + self._offset_s
        health = self._health(row, decision, follower, now_s)
        while self._coming and self._coming[0].at_s <= now_s:
            self._changed(self._coming.popleft())
        begun = conditions(policy, health, self._book.holding())
        found.told += [(now_s, alert) for alert in self._book.update(begun, now_s, now_s)]
        found.looks += 1
        found.first_s = now_s if found.first_s is None else found.first_s
        found.last_s = now_s

    def _changed(self, change: Change) -> None:
        if change.kind is ChangeKind.CONFIGURATION:
            self._rollback = change if change.reason.startswith(REGRESSION) else self._rollback
        elif change.kind is ChangeKind.ROLLOUT:
            self._rollouts_back.pop(change.subject, None)
            if change.reason in HARMS:
                self._rollouts_back[change.subject] = change.at_s

    def _health(self, row: records.Step, decision: Decision, follower: Follower, now_s: float) -> Health:
        recent = self._window.reading(now_s, None)
        members = {name: follower.beliefs[name] for names in row.routes.values() for name in names}
        seen = row.observation
        ages = {
            pool: {each.replica_id: seen.now_s - each.read_s for each in readings}
            for pool, readings in seen.engines.items()
            if readings
        }
        return Health(
            error_fraction=recent.error_fraction,
            avg_latency_ms=recent.avg_latency_ms,
            members=len(members),
            members_out=[name for name, each in members.items() if each.health is beliefs.Health.OUT],
            replicas_out=[name for each in members.values() for name in outs(each.replicas)],
            objectives=self._counts.windows(now_s),
            queues={
                name: pool.score.parts["queue"]
                for name, pool in decision.pools.items()
                if "queue" in pool.score.parts
            },
            reading_ages_s={name: age_s for pool in ages.values() for name, age_s in pool.items()},
            pool_ages_s={name: min(pool.values()) for name, pool in ages.items()},
            silences=seen.silences,
            rollback=_rollback(self._rollback, now_s),
            rollouts_back_s={name: now_s - at_s for name, at_s in self._rollouts_back.items()},
            journal_lost_ago_s=None if self._lost_s is None else now_s - self._lost_s,
        )


def _rollback(change: Change | None, now_s: float) -> Rollback | None:
    """The way back as the rule reads it; the version before it is the one that was taken back."""
    if change is None:
        return None
    version = int(change.subject.removeprefix("v"))
    return Rollback(from_version=version - 1, to_version=version, seconds_ago=now_s - change.at_s)
