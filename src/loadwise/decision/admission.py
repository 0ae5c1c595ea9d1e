"""5 admit: who enters, who waits in the engines' queues, and who is refused at once.

Three bounds, of which the tightest holds:

- limits: what the operator lets a member be asked for, whatever it could take;
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
from loadwise.decision.limits import (
    EMPTY,
    NO_LIMITS,
    Limits,
    Minute,
    wait_for_request_s,
    wait_for_tokens_s,
)

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
    REQUESTS_PER_MINUTE = "requests_per_minute"
    TOKENS_PER_MINUTE = "tokens_per_minute"
    MAX_CONCURRENT = "max_concurrent_requests"


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


_ROOM: Final = Admission(admitted=True, reason=AdmissionReason.ROOM)
_UNLIMITED: Final = Admission(admitted=True, reason=AdmissionReason.UNLIMITED)


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
    # The member's limits, its last minute, and the tokens that the request is expected to need.
    limits: Limits = NO_LIMITS
    minute: Minute = EMPTY
    tokens: int = 0
    now_s: float = 0.0
    # Requests in flight on the member from other processes, and on replicas of it that are out.
    elsewhere: int = 0


def enter(entry: Entry) -> Admission:
    """Whether the member's limits allow it, pool and queue have room, and the request would be in time."""
    if entry.limits is not NO_LIMITS:
        limited = _limited(entry)
        if limited is not None:
            return limited
    room = _room(entry)
    if not room.admitted or entry.expected is None or not entry.policy.refuse_late:
        return room
    return in_time(entry.objectives, entry.expected)


def _limited(entry: Entry) -> Admission | None:
    """Which limit keeps the request out, and until when; None where none does."""
    limits, minute, now_s = entry.limits, entry.minute, entry.now_s
    most = limits.max_concurrent_requests
    if most is not None and entry.pressure.in_flight + entry.elsewhere >= most:
        again_s = _retry_after_s(entry.policy, entry.pressure, entry.own)
        return Admission(admitted=False, reason=AdmissionReason.MAX_CONCURRENT, retry_after_s=again_s)
    waits = {
        AdmissionReason.REQUESTS_PER_MINUTE: wait_for_request_s(limits, minute, now_s),
        AdmissionReason.TOKENS_PER_MINUTE: wait_for_tokens_s(limits, minute, now_s, entry.tokens),
    }
    reason = max(waits, key=waits.__getitem__)
    if waits[reason] <= 0.0:
        return None
    return Admission(admitted=False, reason=reason, retry_after_s=float(ceil(waits[reason])))


def _room(entry: Entry) -> Admission:
    pool = admit(entry.policy, entry.request, entry.pressure, entry.pool)
    if not pool.admitted or entry.own.running is None:
        return pool
    alone = replace(entry.pressure, pool_in_flight=entry.pressure.in_flight)
    return admit(entry.policy, entry.request, alone, entry.own)


def admit(policy: Policy, request: RequestFacts, pressure: MemberPressure, limit: PoolLimit) -> Admission:
    """Whether the pool of `pressure` has room for one more request (for `n` answers of it)."""
    if limit.running is None:
        return _UNLIMITED
    held = pressure.pool_in_flight
    # A request for many answers is judged as one that fits an empty pool, or it could never enter.
    needed = min(max(1, request.n), limit.running + limit.waiting)
    if held + needed <= limit.running + limit.waiting:
        return _ROOM
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
        return _ROOM
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
