"""Everything that a choice depends on in one value, so that it can be made again and be the same."""

from __future__ import annotations

from typing import NamedTuple

from loadwise.decision.beliefs import Belief
from loadwise.decision.candidates import Refusal
from loadwise.decision.choices import Choice, ChoiceReason, Remembered
from loadwise.decision.ensemble import select
from loadwise.decision.facts import MemberPressure, Policy, RequestFacts, Route
from loadwise.decision.parameters import Tuning, tune
from loadwise.decision.strategy import Strategy

# Requests that are served as they came.
UNTOUCHED = frozenset({ChoiceReason.OFF, ChoiceReason.CONTROL, ChoiceReason.STOPPED})


class Question(NamedTuple):
    """What `ensemble.select` was asked, with beliefs and pressures as they stood; none of it ever changes."""

    policy: Policy
    route: Route
    request: RequestFacts
    beliefs: tuple[Belief, ...]
    pressures: tuple[MemberPressure, ...]
    strategy: Strategy | None
    draw: float
    now_s: float
    remembered: Remembered | None
    excluded: frozenset[str]
    control: bool


def answer(question: Question) -> Choice | Refusal:
    """The choice, made again."""
    return select(
        question.policy,
        question.route,
        question.request,
        {belief.member_id: belief for belief in question.beliefs},
        {pressure.member_id: pressure for pressure in question.pressures},
        question.strategy,
        question.draw,
        question.now_s,
        remembered=question.remembered,
        excluded=question.excluded,
        control=question.control,
    )


def tuned(question: Question, choice: Choice, *, untouched: bool = False) -> Tuning:
    """What is changed of the request, once its member is chosen; where it is left alone, ceilings only."""
    member = next(m for m in question.route.members if m.member_id == choice.member_id)
    belief = next(b for b in question.beliefs if b.member_id == choice.member_id)
    strategy = None if untouched or choice.reason in UNTOUCHED else question.strategy
    return tune(question.policy, strategy, question.request, member, belief.answers)
