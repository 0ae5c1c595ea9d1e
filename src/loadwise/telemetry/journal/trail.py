"""What a journal holds of one request: its decisions, how they ended, and what was said of its answer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

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
    """Everything about one request id, in order; several attempts where replicas failed or ids repeat."""

    attempts: list[Attempt] = field(default_factory=list)
    # (wall time, refusal).
    refusals: list[tuple[float, records.TurnedAway]] = field(default_factory=list)
    feedback: list[Scored] = field(default_factory=list)

    @property
    def answered(self) -> Attempt | None:
        """The last attempt that ended."""
        return next((each for each in reversed(self.attempts) if each.ended is not None), None)


def trail_of(reader: Reader, request_id: str) -> Trail:
    """A request's trail; empty where the journal knows nothing of it."""
    trail = Trail(feedback=reader.feedback(request_id))
    for segment, offset_s, row in _rows(reader, request_id):
        match row:
            case records.Decided():
                trail.attempts.append(Attempt(segment=segment, at_s=row.now_s + offset_s, decided=row))
            case records.TurnedAway():
                trail.refusals.append((row.now_s + offset_s, row))
            case records.Ended():
                _end(trail, row, row.outcome.finished_s + offset_s)
    return trail


def _rows(reader: Reader, request_id: str) -> Iterator[tuple[int, float, Record]]:
    for batch in reader.rows_of(request_id):
        for row in batch.rows:
            if records.request_id_of(row) == request_id:
                yield batch.segment, batch.offset_s, row


def _end(trail: Trail, row: records.Ended, ended_s: float) -> None:
    for attempt in trail.attempts:
        dispatched = attempt.decided.dispatched
        if (
            attempt.ended is None
            and dispatched is not None
            and dispatched.started_s == row.started_s
            and dispatched.replica_id == row.outcome.replica_id
        ):
            attempt.ended, attempt.ended_s = row, ended_s
            return
