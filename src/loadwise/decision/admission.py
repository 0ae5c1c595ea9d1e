"""5 admit: who enters, who waits in the engines' queues, and who is refused at once.

Two bounds, of which the tighter holds:

- places: running and waiting requests that a pool or a member can hold at all;
- objectives: a request whose first token would come too late, or which would slow down the whole batch
  too much, helps nobody. It is refused while its client can still go elsewhere, and those behind it stay
  in time. Only a queue is a reason: an idle member refuses nobody, however slow it is.

What is unknown refuses nobody: a member without `MEASURED_OUTCOMES` has no speed to predict from, and at more
work than was measured a member counts as no slower than it was seen.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from math import ceil
from typing import Final, NamedTuple

from loadwise.decision.expected import Latencies
from loadwise.decision.facts import MemberPressure, Objectives, Policy, RequestFacts

# A client is never told to wait longer than this.
LONGEST_RETRY_S: Final = 120.0
# The share of the objective that the expected first token may take; the rest is for what is not foreseen:
# answers longer than usual, and requests that others send meanwhile.
LATE_FROM: Final = 0.7
# The same of the time per further token, a mean over the whole answer.
SLOW_FROM: Final = 0.9
# The same for what could not be in time alone, in times of what it takes then.
LATE_ALONE: Final = 1.5


class AdmissionReason(StrEnum):
    """Why a request entered, or did not."""

    ROOM = "room"
    UNLIMITED = "unlimited"
    QUEUE_FULL = "queue_full"
    TOO_LATE = "too_late"
    TOO_SLOW = "too_slow"


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolLimit:
    """Requests a pool may hold at once, running and waiting; None is unlimited."""

    running: int | None = None
    waiting: int = 0
    # Output tokens per second that the pool makes when it is busy; None when unknown.
    output_tokens_per_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Admission:
    """Whether a request may enter; when not, after how many seconds trying again makes sense."""

    admitted: bool
    reason: AdmissionReason
    retry_after_s: float | None = None


class Entry(NamedTuple):
    """Everything that an admission depends on: the same entry, the same answer.

    `expected` None: nobody can tell how long the request will take, so only room counts.
    """

    policy: Policy
    request: RequestFacts
    pressure: MemberPressure
    # Of the member's pool, and of the member itself.
    pool: PoolLimit
    own: PoolLimit
    objectives: Objectives
    expected: Latencies | None


def enter(entry: Entry) -> Admission:
    """Whether the member's pool and its own queue have room, and the request would be in time."""
    room = _room(entry)
    if not room.admitted or entry.expected is None or not entry.policy.refuse_late:
        return room
    return in_time(entry.objectives, entry.expected)


def _room(entry: Entry) -> Admission:
    pool = admit(entry.policy, entry.request, entry.pressure, entry.pool)
    if not pool.admitted or entry.own.running is None:
        return pool
    alone = replace(entry.pressure, pool_in_flight=entry.pressure.in_flight)
    return admit(entry.policy, entry.request, alone, entry.own)


def admit(policy: Policy, request: RequestFacts, pressure: MemberPressure, limit: PoolLimit) -> Admission:
    """Whether the pool of `pressure` has room for one more request (for `n` answers of it)."""
    if limit.running is None:
        return Admission(admitted=True, reason=AdmissionReason.UNLIMITED)
    held = pressure.pool_in_flight
    # A request for many answers is judged as one that fits an empty pool, or it could never enter.
    needed = min(max(1, request.n), limit.running + limit.waiting)
    if held + needed <= limit.running + limit.waiting:
        return Admission(admitted=True, reason=AdmissionReason.ROOM)
    return Admission(
        admitted=False,
        reason=AdmissionReason.QUEUE_FULL,
        retry_after_s=_retry_after_s(policy, pressure, limit),
    )


def in_time(objectives: Objectives, expected: Latencies) -> Admission:
    """Whether a request with these latencies would meet its objectives.

    What takes long even alone may take half as long again. Trying again makes sense when the queue has
    shrunk by what is too much of it.
    """
    first_s = max(LATE_FROM * objectives.time_to_first_token_s, LATE_ALONE * expected.first_alone_s)
    each_s = max(SLOW_FROM * objectives.time_per_output_token_s, LATE_ALONE * expected.each_alone_s)
    if expected.first_s <= first_s and expected.each_s <= each_s:
        return Admission(admitted=True, reason=AdmissionReason.ROOM)
    late_s = max(0.0, expected.first_s - first_s)
    reason = AdmissionReason.TOO_LATE if late_s else AdmissionReason.TOO_SLOW
    return Admission(
        admitted=False, reason=reason, retry_after_s=float(max(1, ceil(min(LONGEST_RETRY_S, late_s))))
    )


def _retry_after_s(policy: Policy, pressure: MemberPressure, limit: PoolLimit) -> float:
    """Whole seconds until about one waiting place in two is free again, at the speed last measured."""
    if limit.output_tokens_per_s is None or limit.output_tokens_per_s <= 0:
        return float(max(1, ceil(policy.objectives.time_to_first_token_s)))
    drained_s = pressure.pool_owed_tokens / limit.output_tokens_per_s / 2.0
    return float(max(1, ceil(min(LONGEST_RETRY_S, drained_s))))
