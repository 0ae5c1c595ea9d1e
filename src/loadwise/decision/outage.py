"""When nobody answers: requests are refused at once, but for a probe now and then that shows who is back.

Members that fail are asked all the same where there is no other (`health`): one that answers half of its
requests is better than none. But where every replica of every member that could take a request fails, and so
often in a row that chance does not explain it, each attempt only adds to what its client, and every gateway
before us, will ask again. Then one request at a time goes through, after half a second, later after five.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil, log
from typing import Final

from loadwise.decision.beliefs import Belief, Health
from loadwise.decision.candidates import Refusal, RefusalReason
from loadwise.decision.facts import Member, MemberPressure, RequestFacts
from loadwise.decision.replicas import none_answers
from loadwise.decision.rotation import FAULTS_IN_A_ROW

# Faults in a row are no chance where its usual share of failures gives them less often than this.
CHANCE: Final = 1e-6
# Answers before them that are assumed of every member, one of them a failure.
ASSUMED: Final = 20.0
# Seconds without an attempt: after those that showed it, doubling with each probe that fails.
FIRST_PROBE_S: Final = 0.5
PROBE_MOST_S: Final = 5.0
# What clients are told to wait: we refuse at no cost to anybody, and are back with the first answer.
RETRY_AFTER_S: Final = 1.0


def faults_needed(belief: Belief) -> int:
    """Faults in a row that its other answers of the last minutes do not explain."""
    others = max(0.0, belief.weight - belief.faults_in_a_row)
    failures = max(0.0, belief.failures - belief.faults_in_a_row)
    usual = (failures + 1.0) / (others + ASSUMED)
    return max(FAULTS_IN_A_ROW, ceil(log(CHANCE) / log(usual)))


def fails(belief: Belief) -> bool:
    """Whether the member is known to answer nothing, by none of its replicas."""
    if belief.faults_in_a_row < FAULTS_IN_A_ROW or belief.faults_in_a_row < faults_needed(belief):
        return False
    return belief.health is Health.OUT or not belief.replicas or none_answers(belief.replicas)


def nobody_answers(members: Sequence[Member], beliefs: Mapping[str, Belief]) -> bool:
    """Whether all of them are known to fail."""
    # Asked at every request, and nearly always over with the first; a generator costs more than that.
    for member in members:  # noqa: SIM110
        if not fails(beliefs[member.member_id]):
            return False
    return True


def refusal(
    request: RequestFacts,
    members: Sequence[Member],
    beliefs: Mapping[str, Belief],
    pressures: Mapping[str, MemberPressure],
    now_s: float,
) -> Refusal | None:
    """Why a request for members of which nobody answers is refused now; None for one that shall try them."""
    known = [beliefs[member.member_id] for member in members]
    flying = sum([_in_flight(member, pressures) for member in members])
    if now_s - max([belief.failed_s for belief in known]) >= wait_s(known, flying):
        return None
    failed = sum([faults(belief) for belief in known])
    return Refusal(
        reason=RefusalReason.NOBODY_ANSWERS,
        status=503,
        message=f"Every engine that could answer {request.model!r:.200} fails: the last {failed} attempts "
        "came to nothing, and until one succeeds only a probe is made now and then. "
        f"Try again in {RETRY_AFTER_S:g} s.",
        code=RefusalReason.NOBODY_ANSWERS.value,
        retry_after_s=RETRY_AFTER_S,
    )


def wait_s(known: Sequence[Belief], flying: int) -> float:
    """Seconds after the last fault for which nobody is let in, where so many are in flight.

    Each that does not fail halves what is left of a second such time: after both all are let in, since
    answers may be long.
    """
    more = sum([max(0, belief.faults_in_a_row - faults_needed(belief)) for belief in known])
    # Beyond these it is the longest anyhow.
    whole_s = min(PROBE_MOST_S, FIRST_PROBE_S * 2.0 ** min(more, 10))
    return whole_s * (2.0 - 0.5 ** min(flying, 100))


def probed(
    members: Sequence[Member], beliefs: Mapping[str, Belief], pressures: Mapping[str, MemberPressure]
) -> Member:
    """Who is asked now: of those with the fewest requests in flight one after the other."""
    least = min([_in_flight(member, pressures) for member in members])
    idle = [member for member in members if _in_flight(member, pressures) == least]
    return idle[sum([faults(beliefs[member.member_id]) for member in members]) % len(idle)]


def faults(belief: Belief) -> int:
    """Attempts in a row that failed: of the replicas that serve, and of those that are out."""
    out = [each.faults_in_a_row for each in belief.replicas.values() if each.health is Health.OUT]
    return belief.faults_in_a_row + sum(out)


def _in_flight(member: Member, pressures: Mapping[str, MemberPressure]) -> int:
    pressure = pressures.get(member.member_id)
    return 0 if pressure is None else pressure.in_flight
