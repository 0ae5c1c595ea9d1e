"""Decides a journal again: every choice, every tuning and every step must come out as it was written."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from math import fsum, isclose
from typing import Final

from loadwise.decision.admission import enter
from loadwise.decision.candidates import Refusal
from loadwise.decision.choices import Choice
from loadwise.decision.question import Question, answer, tuned
from loadwise.decision.replicas import pick_replica
from loadwise.ports import JsonObject
from loadwise.telemetry.journal import records
from loadwise.telemetry.journal.follower import Follower
from loadwise.telemetry.journal.reader import Batch
from loadwise.telemetry.journal.records import Record

# Differences that are told one by one.
SHOWN: Final = 20
# Mathematical functions of another machine may differ in their last digit.
CLOSE: Final = 1e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """A row that came out differently."""

    what: str
    request_id: str | None
    written: str
    replayed: str


@dataclass(slots=True, kw_only=True)
class Replayed:
    """What a replay found; `exact` when all that could be decided again came out as written."""

    decisions: int = 0
    decisions_same: int = 0
    # Whether members could take requests that they were chosen for: those let in, and those kept out.
    entries: int = 0
    entries_same: int = 0
    admissions: int = 0
    admissions_same: int = 0
    steps: int = 0
    steps_same: int = 0
    outcomes: int = 0
    refusals: int = 0
    # Events that the writer lost, and rows that rest on ones which cannot be read.
    dropped: int = 0
    skipped: int = 0
    segments: int = 0
    # One line per place at which rows were skipped.
    gaps: list[str] = field(default_factory=list)
    differences: list[Difference] = field(default_factory=list)

    @property
    def exact(self) -> bool:
        """Whether every decision and step was reproduced."""
        return (
            self.decisions == self.decisions_same
            and self.entries == self.entries_same
            and self.admissions == self.admissions_same
            and self.steps == self.steps_same
        )

    def differs(self, what: str, request_id: str | None, written: object, replayed: object) -> None:
        """Keeps one of the first differences."""
        if len(self.differences) < SHOWN:
            found = Difference(
                what=what, request_id=request_id, written=repr(written), replayed=repr(replayed)
            )
            self.differences.append(found)

    def as_json(self) -> JsonObject:
        """The figures, and the first differences."""
        return {
            "exact": self.exact,
            "decisions": {"replayed": self.decisions, "same": self.decisions_same},
            "entries": {"replayed": self.entries, "same": self.entries_same},
            "admissions": {"replayed": self.admissions, "same": self.admissions_same},
            "steps": {"replayed": self.steps, "same": self.steps_same},
            "outcomes": self.outcomes,
            "refusals": self.refusals,
            "segments": self.segments,
            "dropped": self.dropped,
            "skipped": self.skipped,
            "gaps": self.gaps,
            "differences": [
                {
                    "what": found.what,
                    "request_id": found.request_id,
                    "written": found.written,
                    "replayed": found.replayed,
                }
                for found in self.differences
            ],
        }


def replay(batches: Iterable[Batch]) -> Replayed:
    """Every row of a journal decided again; after a damaged batch it goes on at the next segment."""
    found = Replayed()
    for follower, row in followed(batches, found):
        match row:
            case records.Decided():
                _decided(found, follower, row)
            case records.KeptOut():
                _kept_out(found, follower, row)
            case records.Step():
                _stepped(found, follower, row)
                continue
        follower.take(row)
    return found


def followed(batches: Iterable[Batch], found: Replayed) -> Iterator[tuple[Follower, Record]]:
    """Each row with what the rows before it lead to; the receiver gives the row to the follower.

    Rows that cannot be decided again are counted in `found` and left out.
    """
    follower, segment, damaged = Follower(), None, False
    for batch in batches:
        if batch.segment != segment:
            follower, segment, damaged = Follower(), batch.segment, False
            found.segments += 1
        if batch.damaged is not None and not damaged:
            damaged = True
            found.gaps.append(f"segment {segment}: {batch.damaged}; went on at the next segment")
        for row in batch.rows:
            if damaged or not _resolved(follower, row):
                found.skipped += 1
                continue
            _counted(found, row, segment)
            yield follower, row


def _counted(found: Replayed, row: Record, segment: int | None) -> None:
    match row:
        case records.Ended():
            found.outcomes += 1
        case records.TurnedAway():
            found.refusals += 1
        case records.Dropped():
            found.dropped += row.count
            found.gaps.append(f"segment {segment}: {row.count} events were lost before {row.now_s:.3f} s")


def _resolved(follower: Follower, row: Record) -> bool:
    """Whether everything that a row rests on is known."""
    try:
        match row:
            case records.Decided():
                follower.question(row)
            case records.KeptOut():
                return row.policy in follower.policies
            case records.Step():
                follower.observation(row)
                return row.policy in follower.policies
            case records.Ended() if row.learned:
                return row.policy in follower.policies and row.outcome.member_id in follower.beliefs
    except KeyError:
        return False
    return True


def _decided(found: Replayed, follower: Follower, row: records.Decided) -> None:
    question = follower.question(row)
    choice = answer(question)
    found.decisions += 1
    if not same_choice(row.choice, choice):
        found.differs("choice", row.request.request_id, row.choice, choice)
        return
    if row.dispatched is not None and row.dispatched.let_in is not None:
        _let_in(found, follower, row, row.dispatched.let_in)
    if isinstance(choice, Choice) and row.dispatched is not None:
        written = (dict(row.dispatched.changes), row.dispatched.replica_id)
        replayed = _sent(question, choice, row.dispatched)
        if written != replayed:
            found.differs("dispatch", row.request.request_id, written, replayed)
            return
    found.decisions_same += 1


def _let_in(found: Replayed, follower: Follower, row: records.Decided, let_in: records.LetIn) -> None:
    admission = enter(follower.entry_of(row, let_in))
    found.entries += 1
    if admission.admitted and admission.reason is let_in.reason:
        found.entries_same += 1
    else:
        found.differs("entry", row.request.request_id, let_in, admission)


def _kept_out(found: Replayed, follower: Follower, row: records.KeptOut) -> None:
    admission = enter(follower.entry(row))
    found.admissions += 1
    if admission == row.admission:
        found.admissions_same += 1
    else:
        found.differs("admission", row.request_id, row.admission, admission)


def _sent(
    question: Question, choice: Choice, dispatched: records.Dispatched
) -> tuple[dict[str, int | float], str | None]:
    member = next(m for m in question.route.members if m.member_id == choice.member_id)
    belief = next(belief for belief in question.beliefs if belief.member_id == choice.member_id)
    replica = pick_replica(
        member,
        dispatched.in_flight,
        dispatched.replica_draw,
        question.excluded,
        belief.replicas,
        dispatched.started_s,
    )
    return dict(tuned(question, choice, untouched=dispatched.untouched).changes), replica


def same_choice(written: Choice | Refusal, replayed: Choice | Refusal) -> bool:
    """Whether two answers are one: member, reason and memory equal, propensities to the last digit or so."""
    if isinstance(written, Refusal) or isinstance(replayed, Refusal):
        return written == replayed
    same = (
        written.member_id == replayed.member_id
        and written.reason is replayed.reason
        and written.conversation == replayed.conversation
        and len(written.candidates) == len(replayed.candidates)
    )
    pairs = zip(written.candidates, replayed.candidates, strict=False)
    return (
        same
        and all(a[0] == b[0] and isclose(a[1], b[1], abs_tol=CLOSE) for a, b in pairs)
        and isclose(fsum(share for _, share in replayed.candidates), 1.0, abs_tol=CLOSE)
    )


def _stepped(found: Replayed, follower: Follower, row: records.Step) -> None:
    made = records.summary_of(follower.stepped(row))
    found.steps += 1
    if made == row.summary:
        found.steps_same += 1
    else:
        found.differs("step", None, row.summary, made)
