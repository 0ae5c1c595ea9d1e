"""A choice of a member: its propensity, its reason, and what its conversation remembers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from loadwise.decision.expected import Latencies
from loadwise.decision.facts import RequestFacts
from loadwise.decision.lineup import Candidates
from loadwise.decision.quick import new
from loadwise.decision.shares import EXPLORE_MOST
from loadwise.decision.views import Scene


class ChoiceReason(StrEnum):
    """Why this member answers."""

    NAMED = "named"
    OFF = "off"
    CONTROL = "control"
    STOPPED = "stopped"
    DEFAULT_ONLY = "default_only"
    ONLY_CANDIDATE = "only_candidate"
    CONVERSATION = "conversation"
    CONVERSATION_RETURNED = "conversation_returned"
    WEIGHTED_VOTING = "weighted_voting"
    BEST_OF_N = "best_of_n"
    ADAPTIVE_LOW_LOAD = "adaptive_low_load"
    ADAPTIVE_HIGH_LOAD = "adaptive_high_load"
    EXPLORING = "exploring"
    PROBING = "probing"
    PANIC = "panic"


@dataclass(frozen=True, slots=True, kw_only=True)
class Remembered:
    """What a conversation remembers: its member, the one it had to leave, and whether it went back."""

    member_id: str
    left: str | None = None
    returned: bool = False


class Choice(NamedTuple):
    """The member that answers; `candidates` holds every (member id, propensity), which add up to 1."""

    member_id: str
    propensity: float
    reason: ChoiceReason
    candidates: Candidates
    # The pool's weighed requests in flight with this one, for `Outcome.work`.
    work: float
    # What is expected of it now.
    time_to_first_token_s: float | None = None
    time_per_output_token_s: float | None = None
    # The same with the wait for a place, and what an idle member would take; None where nothing was expected.
    expected: Latencies | None = None
    # What the conversation should remember; None outside conversations.
    conversation: Remembered | None = None


def memory(request: RequestFacts, remembered: Remembered | None, member_id: str) -> Remembered | None:
    """What a conversation remembers after `member_id` answered."""
    if request.conversation_id is None:
        return None
    if remembered is None:
        return Remembered(member_id=member_id)
    if remembered.member_id == member_id:
        return remembered
    # The first member stays home; going back there is possible once.
    home = remembered.left or remembered.member_id
    back = member_id == home
    return Remembered(member_id=member_id, left=None if back else home, returned=remembered.returned or back)


def drawn(
    scene: Scene,
    shares: Sequence[float],
    reason: ChoiceReason,
    top: int,
    draw: float,
    remembered: Remembered | None,
) -> Choice:
    """The candidate at `draw` of the cumulated shares; rounding never selects one without a share."""
    if shares[top] == 1.0:
        return choice_of(scene, top, reason, scene.lineup.certain(top), 1.0, remembered)
    at, reached = top, 0.0
    for place, share in enumerate(shares):
        if share <= 0.0:
            continue
        at = place
        reached += share
        if draw < reached:
            break
    if scene.probe_due(at):
        reason = ChoiceReason.PROBING
    elif at != top and shares[at] <= EXPLORE_MOST and scene.stale(at):
        reason = ChoiceReason.EXPLORING
    return choice_of(scene, at, reason, scene.lineup.shared_out(shares), shares[at], remembered)


def choice_of(
    scene: Scene,
    at: int,
    reason: ChoiceReason,
    candidates: Candidates,
    propensity: float,
    remembered: Remembered | None,
) -> Choice:
    """The choice of the candidate at `at`, every propensity beside it."""
    member_id, look, expected = scene.lineup.ids[at], scene.look(at), scene.expected(at)
    kept = memory(scene.request, remembered, member_id)
    work, first_s, each_s = look.work, look.first_s, look.each_s
    return new(Choice, (member_id, propensity, reason, candidates, work, first_s, each_s, expected, kept))
