"""4 select: a request and the members that can answer it become one choice, with propensities and a reason.

Some requests need no comparison: who names a member gets it, who is not optimised gets the default member,
and a conversation keeps its own. All others are shared out by the route's strategy (`selection`).

Members without fresh outcomes get a small share of requests, one at a time, so that they are measured again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from loadwise.decision.beliefs import Belief, Health
from loadwise.decision.candidates import Refusal, candidates
from loadwise.decision.choices import Choice, ChoiceReason, Remembered, choice_of, drawn
from loadwise.decision.facts import Member, MemberPressure, Policy, RequestFacts, Route, StrategyName
from loadwise.decision.lineup import Lineup, lineup_of
from loadwise.decision.outage import nobody_answers, probed, refusal
from loadwise.decision.selection import distribution
from loadwise.decision.strategy import Strategy
from loadwise.decision.views import Scene
from loadwise.decision.wish import wish_of

# Strain beyond which a conversation leaves its member, under overload only.
UNBEARABLE_STRAIN: Final = 2.0
_EMPTY: Final[frozenset[str]] = frozenset()


def select(
    policy: Policy,
    route: Route,
    request: RequestFacts,
    beliefs: Mapping[str, Belief],
    pressures: Mapping[str, MemberPressure],
    strategy: Strategy | None,
    draw: float,
    now_s: float,
    *,
    remembered: Remembered | None = None,
    excluded: frozenset[str] = _EMPTY,
    control: bool = False,
) -> Choice | Refusal:
    """The member that answers `request`, by `draw` in 0..1 where chance decides, or why none can.

    `strategy` None means stopped: the default member answers. `excluded` are replica ids that just
    failed. `control` marks requests of an unoptimised block. Every route member needs a belief;
    `pressures` may lack members whose queues are not known. Where all that could answer are known to fail,
    a request is refused, or probes one of them (`outage`).
    """
    whole = lineup_of(route)
    able = candidates(whole, request, excluded)
    if isinstance(able, Refusal):
        return able
    # Who asks without a word of what is in flight (the library, an engine around us) is never refused.
    failing = _all_failing(whole, request, able, beliefs) if strategy is not None and pressures else None
    refused = None if failing is None else refusal(request, failing, beliefs, pressures, now_s)
    if refused is not None:
        return refused
    if request.model != route.name:
        scene = Scene(whole, whole, request, beliefs, pressures, None, now_s)
        return _single(scene, able[0], ChoiceReason.NAMED, remembered)
    fixed = _fixed(policy, route, request, strategy, control=control)
    if fixed is not None or strategy is None:
        scene = Scene(whole, whole, request, beliefs, pressures, None, now_s)
        return _single(scene, _default(route, able, beliefs), fixed or ChoiceReason.STOPPED, remembered)
    if failing is not None:
        scene = Scene(whole, whole, request, beliefs, pressures, None, now_s)
        return _single(scene, probed(able, beliefs, pressures), ChoiceReason.PROBING, remembered)
    wish, leads = wish_of(request, strategy, pressures), strategy.leads.get(route.name, _EMPTY)
    scene = Scene(whole, whole.among(able), request, beliefs, pressures, wish, now_s, leads)
    kept = _conversation(scene, strategy, remembered)
    if kept is not None:
        return kept
    shares, reason, top = distribution(route.strategy, scene)
    return drawn(scene, shares, reason, top, draw, remembered)


def _all_failing(
    whole: Lineup, request: RequestFacts, able: Sequence[Member], beliefs: Mapping[str, Belief]
) -> Sequence[Member] | None:
    """All that could answer, also those that this request was tried on, where all are known to fail."""
    if not nobody_answers(able, beliefs):
        return None
    everyone = candidates(whole, request)
    return None if isinstance(everyone, Refusal) or not nobody_answers(everyone, beliefs) else everyone


# --- what needs no comparison ------------------------------------------------------------------


def _fixed(
    policy: Policy, route: Route, request: RequestFacts, strategy: Strategy | None, *, control: bool
) -> ChoiceReason | None:
    if strategy is None:
        return ChoiceReason.STOPPED
    if request.off or not request.principal.optimize:
        return ChoiceReason.OFF
    if control:
        return ChoiceReason.CONTROL
    if not policy.enable_ensemble or not route.allow_degrade:
        return ChoiceReason.DEFAULT_ONLY
    return None


def _default(route: Route, able: Sequence[Member], beliefs: Mapping[str, Belief]) -> Member:
    """The default member where it can answer and is not out, else the best that can."""
    serving = [m for m in able if beliefs[m.member_id].health is not Health.OUT] or able
    for member in serving:
        if member.member_id == route.default_member:
            return member
    return max(serving, key=lambda member: -1.0 if member.quality is None else member.quality)


def _single(scene: Scene, member: Member, reason: ChoiceReason, remembered: Remembered | None) -> Choice:
    at = scene.lineup.places[member.member_id]
    return choice_of(scene, at, reason, ((member.member_id, 1.0),), 1.0, remembered)


def _conversation(scene: Scene, strategy: Strategy, remembered: Remembered | None) -> Choice | None:
    """The conversation's own member while it is healthy, fits and bears the load; or its first one again."""
    if remembered is None or scene.request.conversation_id is None:
        return None
    home = _serving(scene, remembered.left)
    if home is not None and not remembered.returned and scene.takes[home] >= 1.0 and scene.fill(home) <= 1.0:
        return _certain(scene, home, ChoiceReason.CONVERSATION_RETURNED, remembered)
    own = _serving(scene, remembered.member_id)
    overloaded = strategy.name is StrategyName.PERFORMANCE
    if own is None or (overloaded and scene.look(own).strain > UNBEARABLE_STRAIN):
        return None
    return _certain(scene, own, ChoiceReason.CONVERSATION, remembered)


def _serving(scene: Scene, member_id: str | None) -> int | None:
    """The place of a candidate that is not out."""
    at = None if member_id is None else scene.lineup.places.get(member_id)
    return at if at is not None and scene.takes[at] > 0.0 and not scene.panic else None


def _certain(scene: Scene, at: int, reason: ChoiceReason, remembered: Remembered) -> Choice:
    return choice_of(scene, at, reason, scene.lineup.certain(at), 1.0, remembered)
