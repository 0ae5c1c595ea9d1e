"""What somebody woken at night needs first: what burns, where time goes, and who is at fault."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, NamedTuple

from loadwise.decision.burn import Share, rate

# Requests below which a share says nothing of a member.
ENOUGH: Final = 10
# A member stands out when its share lies this far from the others'.
APART: Final = 0.10


@dataclass(frozen=True, slots=True, kw_only=True)
class Burn:
    """One objective of one route over five minutes and an hour; `limit_s` None: answers without error."""

    route: str
    objective: str
    limit_s: float | None
    short: Share
    long: Share


class Traffic(NamedTuple):
    """Requests of a time: ended by an engine, failed among those, and refused beside them."""

    ended: int = 0
    failed: int = 0
    refused: int = 0


NO_TRAFFIC: Final = Traffic()


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One stage of an answer: mean seconds, None where it could not be told apart, and how it is known."""

    name: str
    mean_s: float | None
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberSight:
    """A member over the last five minutes."""

    member_id: str
    health: str = "healthy"
    requests: int = 0
    failed: int = 0
    judged: int = 0
    within: int = 0
    # Why its engine cannot be read; empty where it can.
    unread: str = ""
    # Of several replicas, those that are out while the others serve.
    replicas: int = 1
    replicas_out: Sequence[str] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolSight:
    """A pool now: load score (0..1), and requests that wait in its engines; None is unknown."""

    pool_id: str
    load: float | None = None
    waiting: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Situation:
    """Everything a diagnosis reads."""

    burns: Sequence[Burn] = ()
    stages: Sequence[Stage] = ()
    members: Sequence[MemberSight] = ()
    pools: Sequence[PoolSight] = ()
    # Over five minutes and an hour.
    short: Traffic = NO_TRAFFIC
    long: Traffic = NO_TRAFFIC
    # The share of requests that shall meet each objective.
    target: float = 0.99
    # The load from which on a pool counts as overloaded.
    high_load: float = 0.8


class Culprit(StrEnum):
    """What kind of thing is at fault."""

    NOTHING = "nothing"
    UNKNOWN = "unknown"
    MEMBER = "member"
    POOL = "pool"
    EVERYONE = "everyone"


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """Who is at fault, in one sentence that names it and its evidence."""

    culprit: Culprit
    sentence: str
    name: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    """The situation with what follows from it; burning objectives come first."""

    burns: Sequence[Burn]
    stages: Sequence[Stage]
    slowest: str | None
    fault: Fault
    # Over five minutes and an hour.
    short: Traffic = NO_TRAFFIC
    long: Traffic = NO_TRAFFIC


def diagnose(situation: Situation) -> Diagnosis:
    """The diagnosis of a situation."""
    known = [stage for stage in situation.stages if stage.mean_s is not None]
    slowest = max(known, key=lambda stage: stage.mean_s or 0.0).name if known else None
    return Diagnosis(
        burns=sorted(situation.burns, key=lambda burn: -_hottest(burn, situation.target)),
        stages=situation.stages,
        slowest=slowest,
        fault=_fault(situation, slowest),
        short=situation.short,
        long=situation.long,
    )


def _hottest(burn: Burn, target: float) -> float:
    return max(rate(share, target) or 0.0 for share in (burn.short, burn.long))


def _fault(situation: Situation, slowest: str | None) -> Fault:
    """The first rule that finds something; a member is named before a pool, both before everyone."""
    for rule in (_unread, _out, _out_in_part, _failing, _slow, _overloaded):
        found = rule(situation)
        if found is not None:
            return found
    return _nobody(situation, slowest)


def _unread(situation: Situation) -> Fault | None:
    for member in situation.members:
        if member.unread:
            return _member(member, f"its engine cannot be read ({member.unread})")
    return None


def _out(situation: Situation) -> Fault | None:
    out = [member for member in situation.members if member.health == "out"]
    worst = max(out, key=lambda member: member.failed, default=None)
    return None if worst is None else _member(worst, f"it is out of rotation; {_failures(worst)}")


def _out_in_part(situation: Situation) -> Fault | None:
    for member in situation.members:
        out = member.replicas_out
        if out:
            verb, rest = ("is" if len(out) == 1 else "are"), member.replicas - len(out)
            said = f"{', '.join(out)} {verb} out of rotation, {rest} of its {member.replicas} replicas serve"
            return _member(member, f"{said}; {_failures(member)}")
    return None


def _failing(situation: Situation) -> Fault | None:
    worst = max(situation.members, key=lambda m: _fraction(m.failed, m.requests), default=None)
    if worst is None or worst.requests < ENOUGH or not worst.failed:
        # What burns then was refused before an engine was asked.
        return None
    others = [m for m in situation.members if m is not worst]
    share, rest = _fraction(worst.failed, worst.requests), _fraction(*_sums(others, "failed", "requests"))
    if not _burns(situation, failures=True) or share < 2.0 * rest:
        return None
    return _member(worst, f"{_failures(worst)}; of the others' {rest:.0%}")


def _slow(situation: Situation) -> Fault | None:
    timed = [m for m in situation.members if m.judged >= ENOUGH]
    worst = min(timed, key=lambda m: m.within / m.judged, default=None)
    others = [m for m in timed if m is not worst]
    if worst is None or not others:
        return None
    share, rest = worst.within / worst.judged, _fraction(*_sums(others, "within", "judged"))
    if share >= situation.target or rest - share < APART:
        return None
    said = f"{share:.0%} of its {worst.judged} requests met their objectives, of the others' {rest:.0%}"
    return _member(worst, said)


def _overloaded(situation: Situation) -> Fault | None:
    loaded = [pool for pool in situation.pools if pool.load is not None]
    worst = max(loaded, key=lambda pool: pool.load or 0.0, default=None)
    if worst is None or worst.load is None or worst.load < situation.high_load:
        return None
    waiting = "" if worst.waiting is None else f", {worst.waiting} requests wait"
    turned = _turned_away(situation)
    said = f"its load is {worst.load:.2f} (high from {situation.high_load:.2f}){waiting}{turned}"
    return Fault(
        culprit=Culprit.POOL, name=worst.pool_id, sentence=f"Pool {worst.pool_id} is at fault: {said}."
    )


def _nobody(situation: Situation, slowest: str | None) -> Fault:
    if not any(share.judged for burn in situation.burns for share in (burn.short, burn.long)):
        return Fault(
            culprit=Culprit.UNKNOWN,
            sentence="No request ended in the last hour: no member or pool is known to be at fault.",
        )
    if not _burns(situation):
        return Fault(
            culprit=Culprit.NOTHING, sentence="Nothing is at fault: every objective is within its budget."
        )
    told = _turned_away(situation) + ("" if slowest is None else f"; most time goes to {slowest}")
    return (None if slowest == "gateway" else _shared(situation, told)) or Fault(
        culprit=Culprit.EVERYONE,
        sentence=f"No single member or pool is at fault: objectives are missed by all alike{told}.",
    )


def _shared(situation: Situation, told: str) -> Fault | None:
    """What all that is missed has in common: the only member that answered, or the only pool."""
    answering = [member for member in situation.members if member.requests]
    if len(answering) == 1:
        (alone,) = answering
        met = f"{alone.within} of its {alone.judged} judged requests met their objectives"
        return _member(alone, f"it alone answered, and {met}{told}")
    if len(situation.pools) != 1:
        return None
    name = situation.pools[0].pool_id
    said = f"its members miss their objectives alike{told}"
    return Fault(culprit=Culprit.POOL, name=name, sentence=f"Pool {name} is at fault: {said}.")


def _turned_away(situation: Situation) -> str:
    """How many requests were refused, where any was."""
    ended, _, refused = situation.short
    return f"; {refused} of {ended + refused} requests were refused in five minutes" if refused else ""


def _burns(situation: Situation, *, failures: bool = False) -> bool:
    """Whether an objective burns faster than its budget allows; `failures`: that of answers without error."""
    burns = [burn for burn in situation.burns if burn.limit_s is None or not failures]
    return any((rate(burn.short, situation.target) or 0.0) > 1.0 for burn in burns)


def _member(member: MemberSight, said: str) -> Fault:
    return Fault(
        culprit=Culprit.MEMBER,
        name=member.member_id,
        sentence=f"Member {member.member_id} is at fault: {said}.",
    )


def _failures(member: MemberSight) -> str:
    return f"{member.failed} of its {member.requests} requests failed in five minutes"


def _sums(members: Sequence[MemberSight], *names: str) -> tuple[int, ...]:
    return tuple(sum(getattr(member, name) for member in members) for name in names)


def _fraction(part: int, whole: int) -> float:
    return part / whole if whole else 0.0
