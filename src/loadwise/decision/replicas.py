"""One member's replicas: who fails or is silent beside others is left out, probed, and returns on a ramp.

A member is judged by the replicas that serve. At most half of them are out at once, never the last, and none
where no other answers or speaks: where all fail or fall silent, it is the member that leaves (`health`).
Where no other answers one that is out needs no more than one answered probe.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Final, NamedTuple

from loadwise.decision.beliefs import NO_REPLICAS, WELL, Belief, ByReplica, Health, Standing
from loadwise.decision.facts import Member, Policy, Replica
from loadwise.decision.rotation import (
    FAULTS_DOUBTED,
    FAULTS_IN_A_ROW,
    FAULTS_ON_RAMP,
    PROBE_SHARE,
    HealthReason,
    probe_after_s,
    probes_needed,
    taken,
)
from loadwise.decision.silence import Silence, beyond_patience, spent

NONE: Final[frozenset[str]] = frozenset()


class Moved(NamedTuple):
    """A replica that leaves, begins its ramp or is back; `standing` is the one to keep."""

    replica_id: str
    reason: HealthReason
    standing: Standing


# --- what is learned -------------------------------------------------------------------------------------


def heard(standings: ByReplica, replica_id: str, finished_s: float, *, fault: bool) -> ByReplica:
    """The standings after an answer of one; the very same object where that says nothing new."""
    before = standings.get(replica_id)
    if before is None or (not fault and before.health is Health.HEALTHY and not before.faults_in_a_row):
        return standings
    out = before.health is Health.OUT
    after = before._replace(
        faults_in_a_row=before.faults_in_a_row + 1 if fault else 0,
        passed=0 if fault else before.passed + 1,
        probe_at_s=finished_s + probe_after_s(before.removals) if fault and out else before.probe_at_s,
    )
    return {**standings, replica_id: after}


def is_out(standings: ByReplica, replica_id: str) -> bool:
    """Whether the others serve without it."""
    return standings.get(replica_id, WELL).health is Health.OUT


def outs(standings: ByReplica) -> tuple[str, ...]:
    """The replicas that get nothing but probes."""
    return tuple([name for name, each in standings.items() if each.health is Health.OUT])


def none_answers(standings: ByReplica) -> bool:
    """Whether each of them failed at last, and more than once; True of none at all."""
    return all(_answers_not(each) for each in standings.values())


def _answers_not(standing: Standing) -> bool:
    if standing.health is Health.OUT:
        return not standing.passed
    return standing.faults_in_a_row >= FAULTS_DOUBTED


def review(policy: Policy, belief: Belief, now_s: float, silences: Sequence[Silence]) -> tuple[Moved, ...]:
    """Replicas of a member that serves to take out or bring back."""
    standings = belief.replicas
    if len(standings) < 2 or belief.health is Health.OUT:
        return ()
    back = [
        found
        for name, each in standings.items()
        if (found := _returning(name, each, now_s, alone=_alone(standings, name))) is not None
    ]
    out = sum(each.health is Health.OUT for each in standings.values())
    out -= sum(found.standing.health is Health.RAMPING for found in back)
    room = max(0, len(standings) // 2 - out)
    leaving: dict[str, HealthReason] = {}
    faulty = () if none_answers(standings) else _faulty(standings)
    for name, why in (*_silent(policy, belief, silences), *faulty):
        leaving.setdefault(name, why)
    gone = [_removed(name, why, standings[name], now_s) for name, why in leaving.items()]
    return (*back, *gone[:room])


def _alone(standings: ByReplica, name: str) -> bool:
    """Whether no other of them answers."""
    return none_answers({other: each for other, each in standings.items() if other != name})


def _silent(
    policy: Policy, belief: Belief, silences: Sequence[Silence]
) -> Iterator[tuple[str, HealthReason]]:
    """Those silent beyond patience, the longest first, where another of the member speaks."""
    used = {
        each.replica_id: spent(policy, belief, each)
        for each in silences
        if each.member_id == belief.member_id and each.replica_id in belief.replicas
    }
    serving = [name for name, each in belief.replicas.items() if each.health is not Health.OUT]
    for name in beyond_patience(used, serving):
        yield name, HealthReason.SILENT


def _faulty(standings: ByReplica) -> Iterator[tuple[str, HealthReason]]:
    for name, each in sorted(standings.items(), key=lambda pair: (-pair[1].faults_in_a_row, pair[0])):
        if each.health is Health.RAMPING and each.faults_in_a_row >= FAULTS_ON_RAMP:
            yield name, HealthReason.RAMP_FAILED
        elif each.health is not Health.OUT and each.faults_in_a_row >= FAULTS_IN_A_ROW:
            yield name, HealthReason.FAULTS_IN_A_ROW


def _removed(name: str, why: HealthReason, before: Standing, now_s: float) -> Moved:
    after = Standing(
        Health.OUT,
        health_since_s=now_s,
        probe_at_s=now_s + probe_after_s(before.removals),
        removals=before.removals + 1,
    )
    return Moved(name, why, after)


def _returning(name: str, before: Standing, now_s: float, *, alone: bool) -> Moved | None:
    if before.health is Health.OUT and before.passed >= probes_needed(alone=alone):
        after = Standing(Health.RAMPING, health_since_s=now_s, removals=before.removals)
        return Moved(name, HealthReason.PROBES_PASSED, after)
    whole = taken(before.health, before.health_since_s, now_s) >= 1.0
    if before.health is Health.RAMPING and whole and not before.faults_in_a_row:
        return Moved(name, HealthReason.RAMP_COMPLETE, WELL)
    return None


# --- who gets a request ----------------------------------------------------------------------------------


def pick_replica(
    member: Member,
    in_flight: Mapping[str, int],
    draw: float,
    excluded: frozenset[str] = NONE,
    standings: ByReplica = NO_REPLICAS,
    now_s: float = 0.0,
) -> str | None:
    """The replica with most room, by `draw` (0..1) among equals; None when all are excluded.

    One that is out gets nothing but its probes, one at a time; one on its ramp a growing share. Where none
    answers they are asked one after the other.
    """
    if len(member.replicas) == 1 and not excluded:
        return member.replicas[0].replica_id
    left = [replica for replica in member.replicas if replica.replica_id not in excluded]
    if not left:
        return None
    if standings and none_answers(standings):
        turn = sum([each.faults_in_a_row for each in standings.values()]) % len(left)
        draw = (turn + 0.5) / len(left)
    else:
        left, draw = _taking(left, in_flight, draw, standings, now_s)
    loads = [in_flight.get(r.replica_id, 0) / (r.capacity_requests or 1) for r in left]
    least = min(loads)
    equal = [replica for replica, load in zip(left, loads, strict=True) if load == least]
    return equal[min(int(draw * len(equal)), len(equal) - 1)].replica_id


def _taking(
    left: list[Replica], in_flight: Mapping[str, int], draw: float, standings: ByReplica, now_s: float
) -> tuple[list[Replica], float]:
    """Those that take this request, and what is left of the draw.

    Where nobody would, those on a ramp; else all.
    """
    unwell = [r for r in left if standings.get(r.replica_id, WELL).health is not Health.HEALTHY]
    serving = [replica for replica in left if replica not in unwell]
    for replica in unwell:
        standing = standings[replica.replica_id]
        out = standing.health is Health.OUT
        idle = not in_flight.get(replica.replica_id, 0)
        share = taken(standing.health, standing.health_since_s, now_s)
        if out and idle and now_s >= standing.probe_at_s:
            share = PROBE_SHARE
        if draw < share or share >= 1.0:
            draw /= share
            if out:
                return [replica], draw
            serving.append(replica)
        else:
            draw = (draw - share) / (1.0 - share)
    ramping = [replica for replica in unwell if standings[replica.replica_id].health is Health.RAMPING]
    return serving or ramping or left, draw
