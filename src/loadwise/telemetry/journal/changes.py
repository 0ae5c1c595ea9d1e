"""What loadwise changed by itself or on request, for people: what, why, since when, and how to undo it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from enum import StrEnum
from typing import Final

import msgspec

from loadwise.clock import iso_utc
from loadwise.decision.beliefs import Health
from loadwise.decision.health import HealthChange
from loadwise.ports import JsonObject
from loadwise.telemetry.journal.events import Built, Configured, Event, Reviewed, Rolled, Stepped

STOP: Final = "POST /v1/optimization/stop"
# Why a configuration was put back by itself.
REGRESSION: Final = "regression"
CONFIGURE: Final = "POST /v1/optimization/configure"
# Events that may have changed something; no other did.
CHANGING: Final = (Stepped, Reviewed, Configured, Built, Rolled)


class ChangeKind(StrEnum):
    """What a change is about."""

    STRATEGY = "strategy"
    MEMBER = "member"
    # One of several of a member.
    REPLICA = "replica"
    CONFIGURATION = "configuration"
    BUILD = "build"
    ROLLOUT = "rollout"


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """One change; `at_s` is wall time, `undo` a request that takes it back, or empty."""

    at_s: float
    kind: ChangeKind
    # The pool, member, model or configuration that changed.
    subject: str
    before: str | None
    after: str
    reason: str
    load_score: float | None = None
    # Whether loadwise did it by itself.
    automatic: bool = True
    undo: str = STOP
    # What the request to undo it carries.
    undo_body: JsonObject | None = None

    def as_json(self) -> JsonObject:
        """The change as pages and reports show it."""
        shown: JsonObject = msgspec.to_builtins(self)
        return {"time": iso_utc(self.at_s), **shown}


def changes_of(event: Event, offset_s: float) -> Iterator[Change]:
    """What an event changed; `offset_s` leads from its clock to the wall's."""
    match event:
        case Stepped():
            at_s = _wall_s(event.decision.decided_s, offset_s)
            yield from _strategies(event, at_s)
            for found in event.decision.health.values():
                yield from _members(found, at_s)
            if event.decision.builds.make is not None:
                yield _build(event, at_s)
        case Reviewed():
            yield from _members(event.changes, _wall_s(event.now_s, offset_s))
        case Configured():
            yield _configuration(event, _wall_s(event.now_s, offset_s))
        case Built():
            yield _built(event, _wall_s(event.now_s, offset_s))
        case Rolled():
            yield _rolled(event, _wall_s(event.now_s, offset_s))


def _wall_s(now_s: float, offset_s: float) -> float:
    # A change read from the journal is the change that was heard, to the last digit.
    return round(now_s + offset_s, 3)


def _strategies(event: Stepped, at_s: float) -> Iterator[Change]:
    for name, pool in event.decision.pools.items():
        state = event.before.pools.get(name)
        before = None if state is None else state.name
        after = pool.strategy.name
        known = event.after.pools[name].name is not None
        if known and before is not after:
            yield Change(
                at_s=at_s,
                kind=ChangeKind.STRATEGY,
                subject=name,
                before=None if before is None else before.value,
                after=after.value,
                reason=pool.strategy.reason.value,
                load_score=pool.score.value,
            )


def _members(changes: Iterable[HealthChange], at_s: float) -> Iterator[Change]:
    before = {Health.OUT: "serving", Health.RAMPING: Health.OUT.value, Health.HEALTHY: Health.RAMPING.value}
    for change in changes:
        yield Change(
            at_s=at_s,
            kind=ChangeKind.MEMBER if change.replica_id is None else ChangeKind.REPLICA,
            subject=change.subject,
            before=before[change.health],
            after=change.health.value,
            reason=change.reason.value,
        )


def _build(event: Stepped, at_s: float) -> Change:
    model_id, mode = event.decision.builds.make or ("", "")
    return Change(
        at_s=at_s,
        kind=ChangeKind.BUILD,
        subject=model_id,
        before=None,
        after=mode,
        reason=event.decision.builds.reason.value,
    )


def _built(event: Built, at_s: float) -> Change:
    serves = event.became == "promoted"
    return Change(
        at_s=at_s,
        kind=ChangeKind.BUILD,
        subject=event.model_id,
        before=event.mode,
        after=event.became,
        reason=event.reason,
        # Where it does not serve, the original does already.
        undo=CONFIGURE if serves else "",
        undo_body={"enable_torch_compile": False} if serves else None,
    )


def _rolled(event: Rolled, at_s: float) -> Change:
    return Change(
        at_s=at_s,
        kind=ChangeKind.ROLLOUT,
        subject=event.route if event.key is None else f"{event.route} for {event.key}",
        before=f"{event.before:.0%}",
        after=f"{event.after:.0%}",
        reason=event.reason,
        # One that was taken back begins anew with another `attempt`, which is the operator's to decide.
        undo=STOP if event.after > event.before else "",
    )


def _configuration(event: Configured, at_s: float) -> Change:
    return Change(
        at_s=at_s,
        kind=ChangeKind.CONFIGURATION,
        subject=f"v{event.version}",
        before=None,
        after=", ".join(f"{name}={value['to']}" for name, value in event.changes.items()) or "unchanged",
        reason=" by ".join(filter(None, (REGRESSION if event.reverting else "operator", event.by))),
        automatic=event.reverting,
        undo=CONFIGURE,
        undo_body={name: value["from"] for name, value in event.changes.items()},
    )
