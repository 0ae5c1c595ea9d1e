"""What a journal holds of a request: its decisions, how they ended, and what was said of its answer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from loadwise.decision.facts import Ending
from loadwise.telemetry.journal import records
from loadwise.telemetry.journal.reader import Reader
from loadwise.telemetry.journal.records import Record
from loadwise.telemetry.journal.store import Scored


@dataclass(slots=True, kw_only=True)
class Attempt:
    """One decision of a request; `at_s` is wall time, `ended` None while it is not known how it went."""

    segment: int
    at_s: float
    decided: records.Decided
    ended: records.Ended | None = None
    ended_s: float | None = None


@dataclass(slots=True, kw_only=True)
class Trail:
    """Everything about one request, in order; several attempts where replicas failed."""

    # None for a refusal of an older version.
    tenant: str | None
    attempts: list[Attempt] = field(default_factory=list)
    # (wall time, refusal).
    refusals: list[tuple[float, records.TurnedAway]] = field(default_factory=list)
    feedback: list[Scored] = field(default_factory=list)

    @property
    def answered(self) -> Attempt | None:
        """The last attempt that ended."""
        return next((each for each in reversed(self.attempts) if each.ended is not None), None)

    @property
    def began_s(self) -> float:
        """When it was first heard of (wall time)."""
        return min([each.at_s for each in self.attempts] + [at_s for at_s, _ in self.refusals])

    @property
    def over(self) -> bool:
        """Whether nothing more can come of it: it was answered, or refused."""
        ended = self.attempts[-1].ended if self.attempts else None
        return bool(self.refusals) or (ended is not None and ended.outcome.ending is not Ending.FAILED)


def trails_of(reader: Reader, request_id: str) -> list[Trail]:
    """The requests that carried an id, oldest first: clients may use one again, and tenants the same one."""
    trails: list[Trail] = []
    for segment, offset_s, row in _rows(reader, request_id):
        match row:
            case records.Decided():
                attempt = Attempt(segment=segment, at_s=row.now_s + offset_s, decided=row)
                # A second look, or a second replica, leaves somebody out.
                again = bool(row.excluded)
                _request_of(trails, row.request.principal.tenant, again=again).attempts.append(attempt)
            case records.TurnedAway():
                trail = _request_of(trails, row.tenant, again=True)
                trail.refusals.append((row.now_s + offset_s, row))
            case records.Ended():
                _end(trails, row, row.outcome.finished_s + offset_s)
    for said in reader.feedback(request_id):
        _hear(trails, said)
    return trails


def _request_of(trails: list[Trail], tenant: str | None, *, again: bool) -> Trail:
    """The tenant's latest request where this goes on with it, else a new one."""
    found = next((each for each in reversed(trails) if tenant in (None, each.tenant)), None)
    if again and found is not None and not found.over:
        return found
    trails.append(Trail(tenant=tenant))
    return trails[-1]


def _hear(trails: list[Trail], said: Scored) -> None:
    """Feedback belongs to the answer that it was given for; of an older version, to its tenant's latest."""
    own = [each for each in trails if each.tenant == said.tenant]
    meant = [each for each in own if said.started_s in (0.0, *_starts(each))]
    if meant:
        meant[-1].feedback.append(said)


def _starts(trail: Trail) -> list[float]:
    sent = (each.decided.dispatched for each in trail.attempts)
    return [dispatched.started_s for dispatched in sent if dispatched is not None]


def _rows(reader: Reader, request_id: str) -> Iterator[tuple[int, float, Record]]:
    for batch in reader.rows_of(request_id):
        for row in batch.rows:
            if records.request_id_of(row) == request_id:
                yield batch.segment, batch.offset_s, row


def _end(trails: list[Trail], row: records.Ended, ended_s: float) -> None:
    for attempt in (attempt for trail in trails for attempt in trail.attempts):
        dispatched = attempt.decided.dispatched
        if (
            attempt.ended is None
            and dispatched is not None
            and dispatched.started_s == row.started_s
            and dispatched.replica_id == row.outcome.replica_id
        ):
            attempt.ended, attempt.ended_s = row, ended_s
            return
