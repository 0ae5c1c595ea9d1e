"""Turns events into rows: what earlier rows explain is left out, everything else is written whole.

The scribe follows each belief as replay will: an outcome or a step that made it explains it. A belief that
came about in any other way is no longer the object that is expected, and is written whole before the next
row that rests on it. So every row can be decided again, also after events were lost.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from math import inf
from typing import Any, Final

from loadwise.decision.beliefs import Belief
from loadwise.decision.facts import Number, Policy, RequestFacts, Route
from loadwise.decision.step import State
from loadwise.decision.strategy import Strategy
from loadwise.telemetry.journal import events, records
from loadwise.telemetry.journal.events import Event
from loadwise.telemetry.journal.records import Record

# Objects whose number is known by identity; beyond that they are compared by content again.
REMEMBERED: Final = 4096
# What a row holds as an integer.
LARGEST: Final = 2**63 - 1


class Scribe:
    """Events in, rows out, in the order in which things happened."""

    def __init__(self) -> None:
        # A choice or a lesson that the next event may complete.
        self.waiting: events.Chose | events.Learned | None = None
        self.restart()

    def restart(self) -> None:
        """Forgets what was written: the next rows stand on their own."""
        self._beliefs: dict[str, Belief] = {}
        self._state: State | None = None
        self._numbers: dict[bytes, int] = {}
        self._known: dict[int, tuple[object, int]] = {}

    def rows(self, happened: Iterable[Event]) -> list[Record]:
        """The rows of some events; a choice or a lesson waits for the event that completes it."""
        rows: list[Record] = []
        for event in happened:
            waiting, self.waiting = self.waiting, None
            kind = type(event)
            if kind is events.Sent and _sent(waiting, event):
                self._decided(rows, waiting, event)  # type: ignore[arg-type]
                continue
            if kind is events.Ended and _ended(waiting, event):
                self._ended(rows, waiting, event)  # type: ignore[arg-type]
                continue
            if waiting is not None:
                self._alone(rows, waiting)
            if kind is events.Chose or kind is events.Learned:
                self.waiting = event  # type: ignore[assignment]
            else:
                self._row(rows, event)
        return rows

    def rest(self) -> list[Record]:
        """What still waits, when nothing more will come."""
        rows: list[Record] = []
        waiting, self.waiting = self.waiting, None
        if waiting is not None:
            self._alone(rows, waiting)
        return rows

    def _alone(self, rows: list[Record], waiting: events.Chose | events.Learned) -> None:
        if isinstance(waiting, events.Chose):
            self._decided(rows, waiting, None)
        else:
            self._ended(rows, waiting, None)

    def _row(self, rows: list[Record], event: Event) -> None:
        match event:
            case events.Refused():
                asked = event.request
                row = records.TurnedAway(
                    asked.request_id, event.status, event.code, event.retry_after_s, event.now_s,
                    None if event.again else asked.model, asked.principal.tenant,
                )  # fmt: skip
                rows.append(row)
            case events.Judged():
                self._kept_out(rows, event)
            case events.Ended():
                # Its lesson was lost, or the member is gone: the outcome is still worth keeping.
                rows.append(_ending(event, None, learned=False))
            case events.Stepped():
                self._stepped(rows, event)

    # --- requests ---

    def _decided(self, rows: list[Record], chose: events.Chose, sent: events.Sent | None) -> None:
        asked = chose.question
        policy, route = self._number(rows, asked.policy), self._number(rows, asked.route)
        strategy = None if asked.strategy is None else self._number(rows, asked.strategy)
        self._follow(rows, asked.beliefs)
        rows.append(
            records.Decided(
                request=_storable(asked.request),
                policy=policy,
                route=route,
                strategy=strategy,
                members=tuple([belief.member_id for belief in asked.beliefs]),
                pressures=asked.pressures,
                draw=asked.draw,
                now_s=asked.now_s,
                remembered=asked.remembered,
                excluded=asked.excluded,
                control=asked.control,
                choice=chose.choice,
                dispatched=None if sent is None else _dispatched(sent),
            )
        )

    def _kept_out(self, rows: list[Record], event: events.Judged) -> None:
        entry = event.entry
        policy = self._number(rows, entry.policy)
        rows.append(
            records.KeptOut(
                request_id=entry.request.request_id,
                n=entry.request.n,
                policy=policy,
                pressure=entry.pressure,
                pool=entry.pool,
                own=entry.own,
                objectives=entry.objectives,
                expected=entry.expected,
                admission=event.admission,
                limits=entry.limits,
                minute=entry.minute,
                tokens=entry.tokens,
                now_s=entry.now_s,
                elsewhere=entry.elsewhere,
            )
        )

    def _ended(self, rows: list[Record], lesson: events.Learned, ended: events.Ended | None) -> None:
        member_id = lesson.outcome.member_id
        learned = lesson.after is not lesson.before and self._beliefs.get(member_id) is lesson.before
        number = self._number(rows, lesson.policy) if learned else None
        if learned:
            self._beliefs[member_id] = lesson.after
        if ended is None:
            rows.append(records.Ended(lesson.outcome, number, learned))
        else:
            rows.append(_ending(ended, number, learned=learned))

    # --- the loop ---

    def _stepped(self, rows: list[Record], event: events.Stepped) -> None:
        policy = self._number(rows, event.policy)
        if self._state is not event.before:
            rows.append(records.KeptState(event.before))
        seen = event.observation.beliefs
        for members in seen.values():
            self._follow(rows, members.values())
        rows.append(
            records.Step(
                policy=policy,
                observation=records.without_beliefs(event.observation),
                routes={route: tuple(members) for route, members in seen.items()},
                summary=records.summary_of(event.decision),
            )
        )
        self._state = event.after
        for after in event.decision.beliefs.values():
            self._beliefs.update(after)

    # --- what rows rest on ---

    def _follow(self, rows: list[Record], beliefs: Iterable[Belief]) -> None:
        for belief in beliefs:
            if self._beliefs.get(belief.member_id) is not belief:
                self._beliefs[belief.member_id] = belief
                rows.append(records.KeptBelief(belief))

    def _number(self, rows: list[Record], value: Policy | Route | Strategy) -> int:
        """The value's number; the row that introduces it is among `rows` where it is new."""
        known = self._known.get(id(value))
        if known is not None:
            return known[1]
        if len(self._known) >= REMEMBERED:
            self._known.clear()
        content = type(value).__name__.encode() + records.ENCODER.encode(value)
        number = self._numbers.get(content)
        if number is None:
            number = self._numbers[content] = len(self._numbers) + 1
            rows.append(_kept(number, value))
        # The value is kept, so that its identity is not used again.
        self._known[id(value)] = (value, number)
        return number


def _kept(number: int, value: Policy | Route | Strategy) -> Record:
    match value:
        case Policy():
            return records.KeptPolicy(number, value)
        case Route():
            return records.KeptRoute(number, value)
        case _:
            return records.KeptStrategy(number, value)


def _storable(request: RequestFacts) -> RequestFacts:
    """The request with numbers that a row can hold; one beyond 64 bits is kept as a float."""
    explicit = request.explicit
    if not explicit or all(-LARGEST <= value <= LARGEST for value in explicit.values()):
        return request
    return replace(request, explicit={name: _bounded(value) for name, value in explicit.items()})


def _bounded(value: Number) -> Number:
    if -LARGEST <= value <= LARGEST:
        return value
    try:
        return float(value)
    except OverflowError:
        return inf if value > 0 else -inf


def _sent(waiting: events.Chose | events.Learned | None, sent: Any) -> bool:
    return isinstance(waiting, events.Chose) and waiting.question.request is sent.dispatch.request


def _ended(waiting: events.Chose | events.Learned | None, ended: Any) -> bool:
    return isinstance(waiting, events.Learned) and waiting.outcome is ended.outcome


def _dispatched(sent: events.Sent) -> records.Dispatched:
    dispatch = sent.dispatch
    return records.Dispatched(
        started_s=dispatch.started_s,
        replica_id=dispatch.replica_id,
        strategy=dispatch.strategy,
        changes=dispatch.changes,
        because=sent.tuning.because,
        tuning=sent.tuning.reason,
        config_version=dispatch.config_version,
        load_score=dispatch.load_score,
        replica_draw=sent.replica_draw,
        in_flight=sent.in_flight,
        advised=dispatch.advised,
        let_in=None if sent.let_in is None else _let_in(sent.let_in),
        enrolled=sent.enrolled,
        untouched=dispatch.control,
    )


def _let_in(judged: events.Judged) -> records.LetIn:
    entry = judged.entry
    return records.LetIn(
        pressure=entry.pressure,
        pool=entry.pool,
        own=entry.own,
        predicted=entry.expected is not None,
        reason=judged.admission.reason,
        minute=entry.minute,
        tokens=entry.tokens,
        elsewhere=entry.elsewhere,
    )


def _ending(event: events.Ended, policy: int | None, *, learned: bool) -> records.Ended:
    dispatch = event.dispatch
    return records.Ended(event.outcome, policy, learned, dispatch.started_s, dispatch.strategy, event.within)
