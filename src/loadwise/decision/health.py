"""Members of a route that leave and come back: who fails or is silent goes out, is probed, and ramps up.

What each answer taught is in the beliefs (`outcome.learn`); here follows what the route does by it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from loadwise.decision import replicas
from loadwise.decision.beliefs import WELL, Belief, Health
from loadwise.decision.facts import Policy
from loadwise.decision.outage import fails
from loadwise.decision.rotation import (
    FAULTS_IN_A_ROW,
    FAULTS_ON_RAMP,
    HealthReason,
    probe_after_s,
    probes_needed,
    taken,
)
from loadwise.decision.silence import Silence, mute

FAULT_FRACTION: Final = 0.5
FAULTS_NEEDED: Final = 5.0


@dataclass(frozen=True, slots=True)
class HealthChange:
    """A member, or one of its replicas, leaves, begins its ramp or is back; `belief` is the one to keep."""

    member_id: str
    health: Health
    reason: HealthReason
    belief: Belief
    replica_id: str | None = None

    @property
    def subject(self) -> str:
        """Whose health changed."""
        return self.replica_id or self.member_id


def review(
    policy: Policy, beliefs: Mapping[str, Belief], now_s: float, silences: Sequence[Silence] = ()
) -> tuple[HealthChange, ...]:
    """Members of one route, and their replicas, to take out or bring back.

    At most half of the members are out at once, never the last: where nobody answers, `outage` says who is
    asked. Replicas come first: what one of them does is not the member's fault.
    """
    moves = [move for belief in beliefs.values() for move in _moves(policy, belief, now_s, silences)]
    beliefs = {**beliefs, **{move.member_id: move.belief for move in moves}}
    return (*moves, *_members(policy, beliefs, now_s, silences))


def _moves(
    policy: Policy, belief: Belief, now_s: float, silences: Sequence[Silence]
) -> Iterator[HealthChange]:
    """Each of a member's replicas that leaves or returns, with the belief that follows from all so far."""
    for name, reason, standing in replicas.review(policy, belief, now_s, silences):
        belief = belief._replace(replicas={**belief.replicas, name: standing})
        if standing.health is Health.OUT:
            # Its faults were these: the others are judged by what comes.
            belief = belief._replace(recent=0.0, recent_faults=0.0, faults_in_a_row=0)
        yield HealthChange(belief.member_id, standing.health, reason, belief, name)


def _members(
    policy: Policy, beliefs: Mapping[str, Belief], now_s: float, silences: Sequence[Silence]
) -> tuple[HealthChange, ...]:
    changes = [
        change
        for belief in beliefs.values()
        if (change := _returning(belief, now_s, alone=_alone(beliefs, belief))) is not None
    ]
    out = sum(belief.health is Health.OUT for belief in beliefs.values())
    out -= sum(change.health is Health.RAMPING for change in changes)
    room = len(beliefs) // 2 - out
    silent = mute(policy, beliefs, silences)
    suspects = [(beliefs[name], HealthReason.SILENT) for name in silent]
    suspects += [(b, why) for n, b in beliefs.items() if n not in silent and (why := _faulty(b)) is not None]
    # Who fails lets its clients ask elsewhere; who is silent keeps them waiting.
    suspects.sort(
        key=lambda pair: (pair[1] is not HealthReason.SILENT, -_fault_fraction(pair[0]), pair[0][0])
    )
    changes += [_removed(belief, why, now_s) for belief, why in suspects[: max(0, room)]]
    return tuple(changes)


def _alone(beliefs: Mapping[str, Belief], belief: Belief) -> bool:
    """Whether there are others, and none of them answers."""
    others = [other for other in beliefs.values() if other is not belief]
    return bool(others) and all(fails(other) for other in others)


def ramp(belief: Belief, now_s: float) -> float:
    """The share of its usual traffic that a member takes: 1 healthy, 0 out, 0.1 to 1 on the ramp."""
    return taken(belief.health, belief.health_since_s, now_s)


def _fault_fraction(belief: Belief) -> float:
    return belief.recent_faults / belief.recent if belief.recent > 0 else 0.0


def _faulty(belief: Belief) -> HealthReason | None:
    """Why a serving member should leave, if it should."""
    if belief.health is Health.OUT:
        return None
    if belief.health is Health.RAMPING and belief.faults_in_a_row >= FAULTS_ON_RAMP:
        return HealthReason.RAMP_FAILED
    if belief.faults_in_a_row >= FAULTS_IN_A_ROW:
        return HealthReason.FAULTS_IN_A_ROW
    many = belief.recent_faults >= FAULTS_NEEDED and _fault_fraction(belief) >= FAULT_FRACTION
    return HealthReason.FAULT_FRACTION if many else None


def _removed(belief: Belief, reason: HealthReason, now_s: float) -> HealthChange:
    belief = belief._replace(
        health=Health.OUT,
        health_since_s=now_s,
        probe_at_s=now_s + probe_after_s(belief.removals),
        removals=belief.removals + 1,
        passed=0,
        # It returns as a whole.
        replicas=dict.fromkeys(belief.replicas, WELL),
    )
    return HealthChange(member_id=belief.member_id, health=Health.OUT, reason=reason, belief=belief)


def _returning(belief: Belief, now_s: float, *, alone: bool) -> HealthChange | None:
    if belief.health is Health.OUT and belief.passed >= probes_needed(alone=alone):
        health, reason, removals = Health.RAMPING, HealthReason.PROBES_PASSED, belief.removals
    elif belief.health is Health.RAMPING and ramp(belief, now_s) >= 1.0 and belief.faults_in_a_row == 0:
        health, reason, removals = Health.HEALTHY, HealthReason.RAMP_COMPLETE, 0
    else:
        return None
    back = belief._replace(
        health=health,
        health_since_s=now_s,
        removals=removals,
        passed=0,
        faults_in_a_row=0,
        recent=0.0,
        recent_faults=0.0,
        recent_misses=0.0,
    )
    return HealthChange(member_id=belief.member_id, health=health, reason=reason, belief=back)
