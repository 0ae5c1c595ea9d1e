"""5 admit: how much work may enter a pool, who waits in the engines' queues, who is refused."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from math import ceil
from typing import Final

from loadwise.decision.facts import MemberPressure, Policy, RequestFacts

# A client is never told to wait longer than this.
LONGEST_RETRY_S: Final = 120.0


class AdmissionReason(StrEnum):
    """Why a request entered, or did not."""

    ROOM = "room"
    UNLIMITED = "unlimited"
    QUEUE_FULL = "queue_full"


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


def _retry_after_s(policy: Policy, pressure: MemberPressure, limit: PoolLimit) -> float:
    """Whole seconds until about one waiting place in two is free again, at the speed last measured."""
    if limit.output_tokens_per_s is None or limit.output_tokens_per_s <= 0:
        return float(max(1, ceil(policy.objectives.time_to_first_token_s)))
    drained_s = pressure.pool_owed_tokens / limit.output_tokens_per_s / 2.0
    return float(max(1, ceil(min(LONGEST_RETRY_S, drained_s))))
